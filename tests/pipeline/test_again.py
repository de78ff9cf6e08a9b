"""Running again: nothing twice, only what is new, next attempts, newest first."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from demo.make_clips import write_scene
from jobs import retry, run
from jobs.lake import Lake
from jobs.sql import query
from schemas.captions import CAPTIONS
from schemas.tables import TABLES
from tests import spark_4_0
from tests.engine_fixtures import DemoModels
from tests.pipeline.conftest import FilledLake, lake_settings
from udfs.engine.client import EngineClient

EVERYTHING = {"generate_captions": True, "enhance_captions": True, "generate_previews": True}
RESULTS = ("windows", "captions", "enhancements", "previews")
FEW = ("scene_0.mp4", "text.mp4", "two_windows.mp4")
"""Clips for the tests that run the whole pipeline several times."""


def rows(spark: SparkSession, lake: Path, name: str) -> Any:
    return spark.read.format("delta").load(str(lake / name))


def count(spark: SparkSession, lake: Path) -> dict[str, int]:
    return {name: rows(spark, lake, name).count() for name in (*RESULTS, "clips", "configs")}


def keys(spark: SparkSession, lake: Path, name: str, clips: set[str]) -> list[tuple[Any, ...]]:
    """What says which rows there are, and how each ended."""
    frame = rows(spark, lake, name)
    key = next(table.key for table in TABLES if table.name == name)
    status = next(column for column in frame.columns if column.endswith("_status"))
    # Where an answer ends may differ with what else is in the batch.
    ended = F.when(F.col(status) == "truncated", "success").otherwise(F.col(status))
    found = frame.select("clip_id", *key, ended).collect()
    return sorted(tuple(row) for row in found if row.clip_id in clips)


def assert_same_rows(spark: SparkSession, lake: Path, reference: FilledLake) -> None:
    """Each row of a lake stands there once, and is one of the reference's."""
    clips = {row.clip_id for row in rows(spark, lake, "clips").select("clip_id").collect()}
    assert len(clips) == len(FEW)
    for name in RESULTS:
        assert keys(spark, lake, name, clips) == keys(spark, reference.folder, name, clips), name


def test_a_second_run_does_no_work_and_adds_no_row_but_its_own(
    spark: SparkSession, own_lake: FilledLake, engine_flags: dict[str, Any], vision_engine: EngineClient
) -> None:
    before, steps = count(spark, own_lake.folder), vision_engine.status()["output_tokens"]
    settings = lake_settings(engine_flags, own_lake.folder, input_path=[str(own_lake.clips)], **EVERYTHING)
    report = run.run(spark, settings)
    assert count(spark, own_lake.folder) == before
    assert vision_engine.status()["output_tokens"] == steps
    assert report.gpu_idle_share is None
    assert {name.split(".")[0] for name in report.counts} == {"clips"}
    assert rows(spark, own_lake.folder, "runs").count() == 2


def test_new_and_changed_clips_are_done_alone(
    spark: SparkSession, own_lake: FilledLake, engine_flags: dict[str, Any], tmp_path: Path
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    write_scene(more / "new.mp4", seed=40, frame_rate=30, seconds=1.5, size=(96, 64))
    write_scene(more / "changing.mp4", seed=41, frame_rate=30, seconds=1.5, size=(96, 64))
    settings = lake_settings(
        engine_flags, own_lake.folder, input_path=[str(more)], generate_captions=True, generate_previews=True
    )
    first = run.run(spark, settings)
    assert first.counts["clips.new"] == 2
    assert sum(n for name, n in first.counts.items() if name.startswith("captions.")) == 2

    write_scene(more / "changing.mp4", seed=42, frame_rate=30, seconds=2.5, size=(96, 64))
    second = run.run(spark, settings)
    assert second.counts["clips.changed"] == 1
    assert sum(n for name, n in second.counts.items() if name.startswith("captions.")) == 1
    assert second.counts["previews.success"] == 1
    shown = query(
        spark,
        Lake(spark, str(own_lake.folder)),
        "SELECT w.num_frames, w.caption_status FROM window_captions w JOIN clips c USING (clip_id) "
        "WHERE c.source_video LIKE '%changing.mp4'",
    ).collect()
    assert [row.num_frames for row in shown] == [75]
    assert shown[0].caption_status in ("success", "truncated")


def test_a_changed_prompt_captions_again_beside_the_old_and_the_view_shows_the_newest(
    spark: SparkSession, own_lake: FilledLake, engine_flags: dict[str, Any]
) -> None:
    before = count(spark, own_lake.folder)
    flags = {**engine_flags, "--captioning-prompt-text": "Which colours are there?"}
    run.run(spark, lake_settings(flags, own_lake.folder, generate_captions=True))
    after = count(spark, own_lake.folder)
    assert after["captions"] == 2 * before["captions"]
    assert after["windows"] == before["windows"]
    shown = query(
        spark, Lake(spark, str(own_lake.folder)), "SELECT DISTINCT prompt_text FROM window_captions"
    )
    assert [row[0] for row in shown.collect()] == ["Which colours are there?"]


def test_retry_appends_the_next_attempt_of_rows_with_an_error_and_of_no_others(
    spark: SparkSession, own_lake: FilledLake, engine_flags: dict[str, Any]
) -> None:
    before = count(spark, own_lake.folder)
    settings = lake_settings(engine_flags, own_lake.folder, **EVERYTHING)
    report = retry.retry(spark, settings, where="caption_status = 'error'")
    assert report.counts == {"captions.error": 1, "enhancements.skipped": 1}
    captions = rows(spark, own_lake.folder, "captions").where("caption_status = 'error'")
    assert [row.attempt for row in captions.orderBy("attempt").collect()] == [1, 2]
    assert count(spark, own_lake.folder)["captions"] == before["captions"] + 1
    nothing = retry.retry(spark, settings, where="caption_status = 'success'")
    assert nothing.counts == {}


def test_a_clip_that_was_missing_is_done_by_retry_once_it_is_there(
    spark: SparkSession, engine_flags: dict[str, Any], tmp_path: Path, vision_engine: EngineClient
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "late.mp4").symlink_to(tmp_path / "arrives.mp4")
    settings = lake_settings(engine_flags, tmp_path / "lake", input_path=[str(clips)], generate_captions=True)
    assert run.run(spark, settings).counts["windows.error"] == 1
    write_scene(tmp_path / "arrives.mp4", seed=1, frame_rate=30, seconds=1.5, size=(96, 64))
    again = lake_settings(engine_flags, tmp_path / "lake", generate_captions=True)
    report = retry.retry(spark, again, where="window_status = 'error'")
    assert report.counts["windows.success"] == 1
    shown = query(spark, Lake(spark, str(tmp_path / "lake")), "SELECT * FROM window_captions").collect()
    assert [(row.window_status, row.window_attempt) for row in shown] == [("success", 2)]
    assert shown[0].caption_status in ("success", "truncated")


def test_two_identical_jobs_at_once_give_each_row_once(
    spark: SparkSession, filled_lake: FilledLake, engine_flags: dict[str, Any], tmp_path: Path
) -> None:
    few = [str(filled_lake.clips / name) for name in FEW]
    settings = lake_settings(
        engine_flags, tmp_path / "lake", input_path=few, windows_per_commit=2, **EVERYTHING
    )
    reports, errors = [], []

    def job() -> None:
        try:
            reports.append(run.run(spark, settings))
        except Exception as error:  # the test fails below, with the error in its message
            errors.append(error)

    threads = [threading.Thread(target=job) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_same_rows(spark, tmp_path / "lake", filled_lake)
    written = sum(
        n for report in reports for name, n in report.counts.items() if name.startswith("captions.")
    )
    assert written == rows(spark, tmp_path / "lake", "captions").count()


KILLED = """
import sys
from captionlake import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.clusters
@pytest.mark.timeout(900)
def test_a_job_that_was_killed_on_spark_4_0_ends_with_the_same_rows_when_this_spark_goes_on_with_it(
    spark: SparkSession,
    filled_lake: FilledLake,
    engine_flags: dict[str, Any],
    demo_models: DemoModels,
    tmp_path: Path,
) -> None:
    lake = tmp_path / "lake"
    few = [str(filled_lake.clips / name) for name in FEW]
    flags = {**engine_flags, "--output-path": lake, "--windows-per-commit": 1}
    arguments = [part for name, value in flags.items() for part in _argument(name, value)]
    command = [sys.executable, "-c", KILLED, "run", *arguments, "--input-path", *few]
    command += ["--generate-captions", "--enhance-captions", "--generate-previews"]
    older = spark_4_0.environment()
    job = subprocess.Popen(command, env=older, start_new_session=True, stderr=subprocess.PIPE, text=True)
    assert job.stderr is not None
    said = []
    for line in job.stderr:
        said.append(line)
        if "stage=captions+previews done=" in line and "done=0/" not in line:
            break
        if _commits(lake, "captions") >= 1:
            break
    assert _commits(lake, "captions") >= 1, "".join(said[-40:])
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    held = rows(spark, lake, "captions").count()
    assert 0 < held < len(FEW) + 1, "the job was killed too late, so nothing was tested"
    engines = [row.engineInfo for row in Lake(spark, str(lake)).delta(CAPTIONS).history().collect()]
    assert all(engine.startswith("Apache-Spark/4.0.") for engine in engines)

    run.run(spark, lake_settings(engine_flags, lake, input_path=few, windows_per_commit=1, **EVERYTHING))
    assert_same_rows(spark, lake, filled_lake)


def _argument(name: str, value: Any) -> list[str]:
    return [name] if value is True else [name, str(value)]


def _commits(lake: Path, name: str) -> int:
    """Commits of a table after the one that created it."""
    return max(0, len(list((lake / name / "_delta_log").glob("*.json"))) - 1)
