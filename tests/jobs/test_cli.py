"""The command line: what it offers, what it refuses, and how it ends."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from conf.loading import FIELDS
from jobs.cli import COMMANDS, main
from jobs.lake import Lake
from schemas.runs import RUNS
from tests.checkout import ROOT
from tests.jobs.conftest import FilledLake

pytestmark = pytest.mark.usefixtures("loggers")
each_command = pytest.mark.parametrize("command", COMMANDS)


def ended(*argv: str) -> int:
    """The exit code, whoever gives it."""
    try:
        return main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


def help_by_flag(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """What the help of a command says of each flag, in one line each."""
    monkeypatch.setenv("COLUMNS", "1000")
    assert ended(command, "--help") == 0
    found = {}
    for entry in re.split(r"\n  (?=-)", capsys.readouterr().out)[1:]:
        text = " ".join(entry.split("\n\n")[0].split())
        found.update(dict.fromkeys(re.findall(r"--[a-z0-9-]+", text), text))
    return found


INPUT = {"lake.input_path", "lake.ingest_mode", "lake.from_curator"}
# How windows are captioned means nothing to these; how they are cut says which windows are meant.
PROMPTS = {
    f"caption_preparation.{name}"
    for name in (
        "model_variant",
        "prompt_variant",
        "prompt_text",
        "model_does_preprocess",
        "preprocess_dtype",
        "generate_previews",
    )
}
HIDDEN = {
    "windows": INPUT | PROMPTS,
    "caption": INPUT,
    "enhance": INPUT | PROMPTS,
    "preview": INPUT | PROMPTS,
    "retry": INPUT,
    "export": INPUT | PROMPTS | {"lake.windows_per_commit", "caption_preparation.verbose"},
    "sql": INPUT
    | {"lake.windows_per_commit"}
    | {
        f"caption_preparation.{name}"
        for name in ("sampling_fps", "window_size", "remainder_threshold", "generate_previews")
    },
}
OWN = {"--help", "--config", "--where", "--format", "--save"}


@each_command
def test_the_help_of_a_command_lists_its_flags_with_what_they_allow_and_no_others(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = help_by_flag(command, capsys, monkeypatch)
    groups, hidden = COMMANDS[command][1], HIDDEN.get(command, set())
    fields = [field for field in FIELDS if field.group in groups and field.path not in hidden]
    flags = {flag for field in fields for flag in field.flags}
    assert {flag for flag in shown if not flag.startswith("--no-")} - OWN == flags
    for field in fields:
        for flag in field.flags:
            assert not field.is_bounded or field.allowed in shown[flag]
            assert "(default: " in shown[flag]


def test_the_help_says_what_holds_without_a_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = help_by_flag("run", capsys, monkeypatch)
    for flag, default in {
        "--captioning-window-size": "256",
        "--captioning-use-vllm-mmcache": "off",
        "--generate-previews": "off",
        "--captioning-prompt-text": "none",
        "--output-path": "none",
        "--windows-per-commit": "none",
    }.items():
        assert shown[flag].endswith(f"(default: {default})")


@each_command
def test_a_flag_that_a_command_does_not_know_is_refused_and_none_is_guessed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = {"sql": ["SELECT 1"], "retry": ["--where", "true"]}.get(command, [])
    for flag in ("--no-such-flag", "--output-pat"):
        assert ended(command, *needed, flag, "x") == 2
        assert flag in capsys.readouterr().err


def test_the_commands_themselves_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n    {command} " in text for command in COMMANDS)
    assert ended() == 2
    assert ended("no-such-command") == 2


def test_the_front_doors_open(capsys: pytest.CaptureFixture[str]) -> None:
    import captionlake

    for door in (["-m", "captionlake", "--version"], ["-m", "jobs.windows", "--help"]):
        done = subprocess.run([sys.executable, *door], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(
            ("captionlake " + captionlake.__version__, "usage: captionlake windows")
        )
    with pytest.raises(SystemExit):
        captionlake.main(["--version"])
    assert capsys.readouterr().out == f"captionlake {captionlake.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["windows", "--captioning-window-size", "3"], ["window_size='3'", "at least 4"]),
        (["run", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["run", "--enhance-captions", "--output-path", "lake"], ["--generate-captions"]),
        (["windows"], ["--output-path"]),
        (
            ["caption", "--model-variant", "demo", "--model-dir", "nowhere", "--output-path", "lake"],
            ["model_dir"],
        ),
    ],
    ids=lambda argv: " ".join(argv)[:40],
)
def test_a_mistake_ends_with_code_2_and_one_line_before_anything_is_written(
    spark: SparkSession,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    argv: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended(*argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = [line for line in shown.err.splitlines() if "error: " in line]
    assert line.startswith("captionlake: error: ")
    assert all(word in line for word in words)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_java_is_told_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert ended("windows", "--output-path", str(tmp_path)) == 2
    assert "install Java 17 or 21" in capsys.readouterr().err


def test_settings_come_from_the_environment_and_the_file_that_it_names(
    spark: SparkSession,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    filled: FilledLake,
    tmp_path: Path,
) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(f"lake:\n  output_path: {filled.lake.location}\n")
    monkeypatch.setenv("CAPTIONLAKE_CONFIG", str(config))
    assert ended("sql", "SELECT count(*) AS n FROM clips", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"n": 10}
    monkeypatch.setenv("CAPTIONLAKE_OUTPUT_PATH", str(tmp_path / "nowhere"))
    assert ended("sql", "SELECT 1") == 2
    assert "nowhere" in capsys.readouterr().err
    monkeypatch.setenv("CAPTIONLAKE_NO_SUCH", "1")
    assert ended("sql", "SELECT 1") == 2
    assert "CAPTIONLAKE_NO_SUCH" in capsys.readouterr().err


def test_results_go_to_stdout_or_a_file_and_log_lines_elsewhere(
    capsys: pytest.CaptureFixture[str], filled: FilledLake, tmp_path: Path
) -> None:
    # A retry that is refused leaves its row in `runs`.
    place = ("--output-path", filled.copy(tmp_path).lake.location)
    statement = "SELECT window_status AS s, count(*) AS n FROM windows GROUP BY 1 ORDER BY 1"
    assert ended("sql", statement, *place, "--format", "csv") == 0
    rows = capsys.readouterr().out
    assert rows.split() == ["s,n", "error,5", "partial,2", "skipped,1", "success,5"]
    saved = tmp_path / "ü.csv"
    assert ended("sql", statement, *place, "--format", "csv", "--save", str(saved)) == 0
    assert capsys.readouterr().out == ""
    assert saved.read_text().split() == rows.split()
    assert ended("sql", statement, *place, "--save", str(tmp_path / "no" / "x.csv")) == 2
    assert "--save" in capsys.readouterr().err
    assert ended("sql", "SELEC", *place) == 2
    assert "cannot be run" in capsys.readouterr().err
    assert ended("retry", "--where", "no_such_column = 1", *place) == 2
    assert "no_such_column = 1" in capsys.readouterr().err


def test_bad_clips_end_in_rows_and_a_summary_and_not_in_a_failure(
    capsys: pytest.CaptureFixture[str],
    spark: SparkSession,
    filled: FilledLake,
    blank_lake: Path,
    tmp_path: Path,
) -> None:
    lake = tmp_path / "lake"
    shutil.copytree(blank_lake, lake)
    clips = [str(filled.clips / name) for name in ("text.mp4", "too short.mp4")]
    assert ended("run", "--input-path", *clips, "--output-path", str(lake), "--generate-previews") == 0
    shown = capsys.readouterr()
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in shown.out.splitlines() if "│" in line
    ]
    assert cells == [
        ["clips", "new", "2"],
        ["previews", "skipped", "2"],
        ["windows", "error", "1"],
        ["windows", "skipped", "1"],
    ]
    assert "stage=windows clips=2" in shown.err
    # The retry takes the window rule and the switches from the run before it.
    assert ended("retry", "--where", "clip_no = 0", "--output-path", str(lake)) == 0
    assert ["windows", "error", "1"] in [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()
    ]
    commands = [row.command for row in Lake(spark, str(lake)).read(RUNS).orderBy("started_at").collect()]
    assert commands == ["run", "retry"]


@pytest.mark.parametrize("name", ["databricks.yaml", "gpu_cluster.yaml"])
def test_a_command_runs_with_the_settings_of_a_cluster(
    spark: SparkSession, capsys: pytest.CaptureFixture[str], filled: FilledLake, tmp_path: Path, name: str
) -> None:
    lake = filled.copy(tmp_path).lake
    window = ["--captioning-window-size", "20", "--captioning-remainder-threshold", "8"]
    config = ["--config", str(ROOT / "conf" / name), "--output-path", lake.location]
    assert ended("windows", *window, *config) == 0
    assert "nothing to do" in capsys.readouterr().out


SESSION = """
import sys
from conf.loading import load_settings
from jobs.session import get_session
flags = {"--spark-property": ("spark.sql.shuffle.partitions = 3",), "--master": "local[1]"}
print(get_session(load_settings(flags=flags).spark).conf.get("spark.sql.shuffle.partitions"))
"""


def test_a_session_that_is_started_gets_the_properties_of_the_settings() -> None:
    done = subprocess.run([sys.executable, "-c", SESSION], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
