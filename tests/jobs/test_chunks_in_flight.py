"""Cores don't wait for commits, and commits don't wait for all that is queued."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

from conf.settings import Settings
from jobs import windows
from jobs.chunks import Chunk
from jobs.lake import Lake
from jobs.session import ahead_of_work
from jobs.stage import JobContext, run_stage
from tests import media_maker
from tests.jobs.conftest import ingest_clips

CORES = 2
TASK_S = 2.0
CHUNKS = 3


def test_short_jobs_go_ahead_of_tasks_that_have_waited_longer(spark: SparkSession, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def slowly(rows: Iterator[int]) -> Iterator[int]:
        for row in rows:
            Path(folder, f"{row} began").touch()
            time.sleep(TASK_S)
            Path(folder, f"{row} ended").touch()
            yield row

    def work() -> int:
        return spark.sparkContext.parallelize(range(2 * CORES), 2 * CORES).mapPartitions(slowly).count()

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        while len(list(tmp_path.glob("* began"))) < CORES:
            time.sleep(0.01)
        with ahead_of_work(spark):
            assert spark.range(1, numPartitions=1).count() == 1
        ended = len(list(tmp_path.glob("* ended")))
        assert working.result() == 2 * CORES
    assert 1 <= ended <= CORES, "it ran only when nothing was queued any more"


def test_a_third_chunk_is_there_when_the_second_leaves_its_cores_and_the_first_commits(
    spark: SparkSession, lake: Lake, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for seed in range(CHUNKS):
        media_maker.make_clip(clips / f"{seed}.mp4", num_frames=24, seed=seed)
    settings = make_settings(input_path=(str(clips),), windows_per_commit=1)
    ingest_clips(lake, settings)
    context = JobContext(lake, settings, "run")
    stage = windows.STAGE.make(context)
    together = threading.Barrier(CHUNKS, timeout=120)

    def rows(lake: Lake, chunk: Chunk, keys: DataFrame) -> DataFrame:
        together.wait()
        return stage.rows(lake, chunk, keys)

    written = run_stage(context, replace(stage, rows=rows))
    assert sum(written.values()) == CHUNKS
