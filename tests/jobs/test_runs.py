"""What was done can be looked up: each run, its settings, and what config ids stand for."""

import hashlib
import json
from datetime import UTC, datetime, timedelta

from conf.identity import prep_config, preview_config
from conf.loading import load_settings
from jobs.report import Report, versions
from schemas.configs import CONFIGS
from schemas.runs import RUNS
from tests.jobs.conftest import FilledLake


def test_a_run_leaves_a_row_that_says_what_it_did_and_how(filled: FilledLake) -> None:
    (row,) = filled.lake.read(RUNS).collect()
    assert (row.run_id, row.command, row.run_status, row.run_error) == (
        filled.report.run_id,
        "run",
        "success",
        None,
    )
    assert row.status_counts == filled.report.counts
    assert row.status_counts == {
        "clips.new": 10,
        "windows.success": 5,
        "windows.partial": 2,
        "windows.error": 5,
        "windows.skipped": 1,
        "previews.success": 7,
        "previews.skipped": 6,
    }
    assert load_settings(base=json.loads(row.settings_json)) == filled.settings
    assert row.config_ids == {
        "windows": prep_config(filled.settings).config_id,
        "previews": preview_config(filled.settings).config_id,
    }
    assert row.versions["pyspark"] == versions()["pyspark"]
    assert timedelta(0) < row.ended_at - row.started_at < timedelta(hours=1)
    assert abs((row.ended_at - row.started_at).total_seconds() - row.wall_s) < 0.01
    # No model has run.
    assert row.windows_per_s is row.tokens_per_s is row.gpu_idle_share is None


def test_a_config_id_can_be_looked_up(filled: FilledLake) -> None:
    rows = {row.kind: row for row in filled.lake.read(CONFIGS).collect()}
    assert set(rows) == {"windows", "previews"}
    for row in rows.values():
        assert hashlib.sha256(row.config_json.encode()).hexdigest() == row.config_id
    assert json.loads(rows["windows"].config_json)["settings"] == {
        "remainder_threshold": 8,
        "window_size": 20,
    }


def report(**given: object) -> Report:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return Report("r1", "run", "{}", start, start + timedelta(seconds=61.26), **given)  # type: ignore[arg-type]


def test_the_summary_counts_rows_by_table_and_status() -> None:
    counts = {"windows.success": 12, "captions.error": 1, "captions.success": 11}
    text = report(counts=counts).render()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert cells == [["captions", "error", "1"], ["captions", "success", "11"], ["windows", "success", "12"]]
    assert text.endswith("run r1 took 61.3 s\n")
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_a_run_that_found_nothing_to_do_says_so() -> None:
    assert "nothing to do" in report().render()


def test_rates_are_those_of_the_stages_that_ran() -> None:
    counts = {"captions.success": 30, "captions.error": 10, "windows.success": 99}
    seconds = {"captions": 20.0, "enhancements": 5.0, "windows": 1000.0}
    made = report(counts=counts, stage_seconds=seconds, generated_tokens=5000)
    assert (made.windows_per_s, made.tokens_per_s) == (2.0, 200.0)
    assert report(counts={"windows.success": 1}, stage_seconds=seconds).windows_per_s is None
