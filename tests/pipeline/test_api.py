"""Pipelines composed in Python: the README's and the docs' code is run as it stands there."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from captionlake import (
    CaptionEnhancementStage,
    CaptionGenerationStage,
    CaptionPreparationStage,
    Pipeline,
    PreviewStage,
)
from conf.errors import SchemaError, SettingsError
from jobs.lake import Lake
from jobs.retry import last_settings
from jobs.sql import query
from tests import media_maker
from tests.checkout import ROOT
from tests.engine_fixtures import MAX_MODEL_LEN, DemoModels
from tests.pipeline.conftest import FilledLake
from udfs.engine.client import EngineClient


@pytest.fixture(scope="module")
def few_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    media_maker.make_clip(folder / "good.mp4", num_frames=60, size=(96, 64))
    (folder / "text.mp4").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def shared_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML file under which the stages use the engines that the suite has loaded."""
    groups = {
        "engine": {"dtype": "float32", "max_model_len": MAX_MODEL_LEN, "temperature": 0.0},
        "preview": {"num_cpus_per_worker": 1},
        "caption_generation": {"max_output_tokens": 12},
        "caption_enhancement": {"max_output_tokens": 12},
    }
    path = tmp_path_factory.mktemp("config") / "shared.yaml"
    path.write_text(yaml.safe_dump(groups))
    return path


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def run_code(code: str, places: dict[str, Path], **names: Any) -> dict[str, Any]:
    """Runs code of a page as it stands there, with other places."""
    for place, path in places.items():
        assert f'"{place}"' in code
        code = code.replace(f'"{place}"', repr(str(path)))
    exec(compile(code, "page", "exec"), names)
    return names


def test_the_readme_s_pipeline_fills_a_lake(
    spark: SparkSession,
    vision_engine: EngineClient,
    text_engine: EngineClient,
    demo_models: DemoModels,
    blank_lake: Path,
    few_clips: Path,
    shared_engines: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = python_blocks("README.md")
    places = {
        "demo/checkpoints": demo_models.model_dir,
        "demo/clips": few_clips,
        "demo/lake": tmp_path / "lake",
        "conf/local.yaml": shared_engines,
    }
    shutil.copytree(blank_lake, tmp_path / "lake")
    run_code(code, places, spark=spark)
    assert "run: rows written" in capsys.readouterr().out
    statement = "SELECT * FROM window_captions ORDER BY window_status"
    broken, good = query(spark, Lake(spark, str(tmp_path / "lake")), statement).collect()
    assert (broken.window_status, broken.caption_status) == ("error", "skipped")
    assert good.caption_status in ("success", "truncated")
    assert good.prompt_text == "What moves?"
    assert (good.preview_status, good.preview_height) == ("success", 120)
    assert good.enhanced_status is not None
    # A retry finds the settings of the pipeline, as of any other run.
    assert last_settings(spark, str(tmp_path / "lake"))["preview"]["target_height"] == 120


def test_the_docs_transforms_give_the_rows_that_the_jobs_write(
    spark: SparkSession,
    vision_engine: EngineClient,
    text_engine: EngineClient,
    demo_models: DemoModels,
    few_clips: Path,
    shared_engines: Path,
) -> None:
    imports, code = python_blocks("docs/python.md")
    places = {
        "demo/clips": few_clips,
        "demo/checkpoints": demo_models.model_dir,
        "conf/local.yaml": shared_engines,
    }
    frames = run_code(imports + code, places, spark=spark)
    prepared = {row.clip_id.rpartition("/")[2]: row.windows for row in frames["prepared"].collect()}
    assert [(w.window_status, w.num_frames) for w in prepared["good.mp4"]] == [("success", 60)]
    assert [(w.window_status, w.window_index) for w in prepared["text.mp4"]] == [("error", None)]
    statuses = {"previews": "preview_status", "captions": "caption_status", "enhanced": "enhanced_status"}
    for name, status in statuses.items():
        rows = frames[name].collect()
        assert len(rows) == 2, name
        found = {row[status] for row in rows if row.window_index is not None}
        assert found <= {"success", "truncated"} or name == "enhanced", name
        assert {row[status] for row in rows if row.window_index is None} == {"skipped"}, name


def test_stages_and_the_command_line_make_the_same_configurations(
    spark: SparkSession,
    filled_lake: FilledLake,
    engine_flags: dict[str, Any],
    demo_models: DemoModels,
    shared_engines: Path,
) -> None:
    clips = (
        Lake(spark, str(filled_lake.folder)).spark.read.format("delta").load(f"{filled_lake.folder}/clips")
    )
    clips = clips.where("source_video LIKE '%two_windows.mp4'")
    config, own = str(shared_engines), {"model_variant": "demo", "model_dir": str(demo_models.model_dir)}
    preparation = CaptionPreparationStage(
        model_variant="demo", prompt_text=engine_flags["--captioning-prompt-text"]
    )
    prepared = preparation.transform(clips)
    captions = CaptionGenerationStage(**own).transform(prepared, config=config)
    enhanced = CaptionEnhancementStage(**own).transform(captions, config=config)
    pairs = {
        "previews": PreviewStage().transform(prepared, config=config),
        "captions": captions,
        "enhancements": enhanced,
    }
    for name, frame in pairs.items():
        written = spark.read.format("delta").load(f"{filled_lake.folder}/{name}")
        keys = [column for column in written.columns if column.endswith(("_id", "attempt", "_no", "_index"))]
        keys.remove("run_id")
        ours = {tuple(row) for row in frame.select(*keys).collect()}
        theirs = {tuple(row) for row in written.select(*keys).collect()}
        assert len(ours) == 2, name
        assert ours <= theirs, name
        assert set(written.columns) - set(frame.columns) == {"run_id", "commit_seq", "created_at"}


def test_a_table_of_clips_goes_through_a_pipeline(
    spark: SparkSession, blank_lake: Path, few_clips: Path, tmp_path: Path
) -> None:
    rows = [("a", bytearray((few_clips / "good.mp4").read_bytes())), ("b", bytearray(b"no video"))]
    clips = spark.createDataFrame(rows, "clip_id string, clip_bytes binary")
    pipeline = Pipeline(stages=[CaptionPreparationStage(model_variant="qwen3")])
    lake = shutil.copytree(blank_lake, tmp_path / "lake")
    report = pipeline.run(spark, clips=clips, output_path=lake)
    assert report.counts == {"clips.new": 2, "windows.success": 1, "windows.error": 1}


def test_a_frame_that_was_not_prepared_is_refused(spark: SparkSession) -> None:
    frame = spark.createDataFrame([("a",)], "clip_id string")
    for stage in (PreviewStage(), CaptionGenerationStage()):
        with pytest.raises(SchemaError, match=r"CaptionPreparationStage\.transform"):
            stage.transform(frame)
    with pytest.raises(SchemaError, match="clip_bytes, clip_uri"):
        CaptionPreparationStage().transform(frame)


def test_previews_that_the_preparation_switches_off_are_not_made(
    spark: SparkSession, few_clips: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = spark.createDataFrame([("a", str(few_clips / "good.mp4"))], "clip_id string, clip_uri string")
    prepared = CaptionPreparationStage(generate_previews=False).transform(clips)
    with caplog.at_level("INFO", logger="jobs"):
        assert PreviewStage().transform(prepared).collect() == []
    assert "PreviewStage skips" in caplog.text


def test_a_caption_stage_for_another_model_than_the_frames_are_for_is_refused(
    spark: SparkSession, few_clips: Path
) -> None:
    clips = spark.createDataFrame([("a", str(few_clips / "good.mp4"))], "clip_id string, clip_uri string")
    prepared = CaptionPreparationStage(model_variant="qwen3").transform(clips)
    with pytest.raises(SettingsError, match="must agree"):
        CaptionGenerationStage(model_variant="qwen").transform(prepared)
