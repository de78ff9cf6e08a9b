"""The functions for SQL: the statements of `docs/sql.md`, as they stand there."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from captionlake import register_functions
from conf.errors import SettingsError
from jobs.cli import main
from jobs.functions import functions_in
from jobs.lake import Lake
from jobs.sql import query
from tests.checkout import ROOT
from tests.engine_fixtures import MAX_MODEL_LEN, DemoModels
from tests.pipeline.conftest import FilledLake

pytestmark = pytest.mark.usefixtures("loggers")

PAGE = (ROOT / "docs/sql.md").read_text()
STATEMENTS = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def shared(demo_models: DemoModels) -> dict[str, dict[str, Any]]:
    """Settings under which the functions use the engines that the suite has loaded."""
    own = {"model_variant": "demo", "model_dir": str(demo_models.model_dir), "max_output_tokens": 12}
    return {
        "engine": {"dtype": "float32", "max_model_len": MAX_MODEL_LEN, "temperature": 0.0},
        "caption_preparation": {"model_variant": "demo", "prompt_text": "What moves?"},
        "caption_generation": own,
        "caption_enhancement": own,
        "preview": {"target_height": 48, "num_cpus_per_worker": 1},
    }


@pytest.fixture(scope="module")
def registered(spark: SparkSession, shared: dict[str, dict[str, Any]]) -> None:
    register_functions(spark, config=shared)


def rows(spark: SparkSession, lake: FilledLake, statement: str) -> list[Any]:
    return query(spark, Lake(spark, str(lake.folder)), statement).collect()


def test_captions_from_sql_are_those_of_the_table(
    spark: SparkSession, filled_lake: FilledLake, registered: None
) -> None:
    answers = {row.window_id: row for row in rows(spark, filled_lake, STATEMENTS[0])}
    held = {row.window_id: row for row in rows(spark, filled_lake, "SELECT * FROM window_captions")}
    wanted = rows(spark, filled_lake, "SELECT window_id FROM windows WHERE end_s < 3")
    assert answers.keys() == {row.window_id for row in wanted}
    for window_id, answer in answers.items():
        assert answer.caption
        assert answer.caption[:10] == held[window_id].caption_text[:10]


def test_a_caption_is_rewritten_in_a_statement(
    spark: SparkSession, filled_lake: FilledLake, registered: None
) -> None:
    answers = rows(spark, filled_lake, STATEMENTS[1])
    assert len(answers) == 3
    for answer in answers:
        assert answer.rewritten or not answer.caption_text.strip()


def test_previews_come_with_the_sizes_of_the_registration(
    spark: SparkSession, filled_lake: FilledLake, registered: None
) -> None:
    answers = rows(spark, filled_lake, STATEMENTS[2])
    assert {row.preview_status for row in answers} == {"success"}
    small = STATEMENTS[2].replace("answer.num_bytes", "answer.height")
    assert {row.height for row in rows(spark, filled_lake, small)} == {48}


def test_the_command_line_knows_the_functions_and_its_settings_reach_them(
    spark: SparkSession,
    filled_lake: FilledLake,
    demo_models: DemoModels,
    shared: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    (command,) = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    config, saved = tmp_path / "shared.yaml", tmp_path / "out.json"
    config.write_text(yaml.safe_dump(shared))
    places = {
        "conf/local.yaml": config,
        "demo/lake": filled_lake.folder,
        "demo/checkpoints": demo_models.model_dir,
    }
    words = [str(places.get(word, word)) for word in shlex.split(command.replace("\\\n", " "))]
    assert words[0] == "captionlake"
    to_file = ["--format", "json", "--save", str(saved)]
    assert main([*words[1:], *to_file]) == 0
    (line,) = saved.read_text().splitlines()
    assert next(iter(json.loads(line).values()))["enhanced_status"] in ("success", "truncated", "skipped")
    shown = STATEMENTS[2].replace("answer.num_bytes", "answer.height")
    flags = ["--config", str(config), "--output-path", str(filled_lake.folder)]
    assert main(["sql", shown, *flags, "--preview-target-height", "32", *to_file]) == 0
    assert {json.loads(line)["height"] for line in saved.read_text().splitlines()} == {32}


def test_a_statement_needs_only_what_its_functions_need(spark: SparkSession, tmp_path: Path) -> None:
    assert functions_in("SELECT Preview_WebP (a) FROM caption_windows") == ["preview_webp"]
    config = {"caption_preparation": {"model_variant": "demo"}}
    missing = {
        name: {"model_variant": "demo", "model_dir": str(tmp_path)} for name in ("caption_generation",)
    }
    with pytest.raises(SettingsError, match="holds no weights"):
        register_functions(spark, config=config | missing)
