"""What a stage asks of the lake before it works, and what has to be there before it commits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.errors import SchemaError
from conf.identity import prep_config, preview_config
from conf.settings import Settings
from jobs import ingest, preview, windows
from jobs.chunks import CELL_CLIPS, Chunk
from jobs.lake import Lake
from jobs.stage import JobContext, Stage, find_work, run_stage
from schemas.clips import CLIPS
from schemas.configs import CONFIGS
from schemas.previews import PREVIEWS
from schemas.windows import WINDOWS
from tests.jobs.conftest import FilledLake
from tests.jobs.rows import fill

NUM_CLIPS = 10
"""Of the filled lake; they have 13 rows in `windows`."""


def watched(stage: Stage, looks: list[str]) -> Stage:
    """The stage, which writes down over what range of clips it asks what is pending."""

    def pending(lake: Lake, where: str) -> DataFrame:
        looks.append(where)
        return stage.pending(lake, where)

    return replace(stage, pending=pending)


@pytest.mark.parametrize(
    ("num_clips", "per_commit", "commits"),
    [
        (NUM_CLIPS, 1000, 1),
        # Nobody has counted the clips.
        (None, 1000, 1),
        # Few clips with more windows than a commit may have.
        (NUM_CLIPS, NUM_CLIPS, 2),
        # More clips than a commit may have.
        (NUM_CLIPS, 5, 3),
    ],
)
def test_each_window_is_done_once_whether_the_lake_is_asked_once_or_again_for_each_chunk(
    filled: FilledLake, tmp_path: Path, num_clips: int | None, per_commit: int, commits: int
) -> None:
    copy = filled.copy(tmp_path, windows_per_commit=per_commit, preview_quality=40)
    lake, looks = copy.lake, list[str]()
    context = JobContext(lake, copy.settings, "asks", num_clips=num_clips)
    stage = watched(preview.stage(context), looks)
    before = lake.version(PREVIEWS)
    assert run_stage(context, stage) == {"success": 7, "skipped": 6}
    assert lake.version(PREVIEWS) - before == commits
    asked_once = num_clips is not None and per_commit == 1000
    assert len(looks) == 1 + (0 if asked_once else commits)
    config_id = preview_config(copy.settings).config_id
    made = lake.read(PREVIEWS).where(F.col("preview_config_id") == config_id)
    assert sorted(row.window_id for row in made.collect()) == sorted(
        row.window_id for row in lake.read(WINDOWS).collect()
    )
    # What is there is not done again.
    assert run_stage(context, stage) == {}
    assert lake.version(PREVIEWS) - before == commits


@pytest.mark.parametrize(
    ("clip_nos", "chunks"),
    [
        ((), []),
        ((3, 7), [Chunk(3, 7, 2)]),
        # A commit stays in a cell, and a chunk knows no keys but its own.
        ((0, CELL_CLIPS), [Chunk(0, 0, 1), Chunk(CELL_CLIPS, CELL_CLIPS, 1)]),
    ],
    ids=["nothing", "one cell", "two cells"],
)
def test_keys_are_kept_for_the_work_where_one_chunk_holds_all_of_them(
    lake: Lake,
    make_context: Callable[..., JobContext],
    clip_nos: tuple[int, ...],
    chunks: list[Chunk],
) -> None:
    context = make_context()
    prep_id = prep_config(context.settings).config_id
    common = {"prep_config_id": prep_id, "attempt": 1, "window_status": "success", "window_index": 0}
    fill(lake, CLIPS, *[{"clip_id": f"c{no}", "clip_no": no} for no in (0, 3, 7, CELL_CLIPS)])
    if clip_nos:
        names = [{"clip_no": no, "clip_id": f"c{no}", "window_id": f"w{no}"} for no in clip_nos]
        fill(lake, WINDOWS, *[common | name for name in names])
    context.num_clips = 4
    stage = preview.stage(context)
    found, keys = find_work(context, stage)
    assert found == chunks
    assert (keys is not None) == (len(chunks) == 1)
    if keys is not None:
        assert keys.schema == stage.pending(lake, "true").schema
        assert sorted(row.window_id for row in keys.collect()) == ["w3", "w7"]
    context.num_clips = None
    assert find_work(context, stage) == (chunks, None)


def test_no_row_is_committed_under_a_config_id_that_nobody_can_look_up(
    spark: SparkSession, filled: FilledLake, lake: Lake, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(input_path=(str(filled.clips / "one window.mp4"),))
    ingest.run(spark, settings)
    fresh = spark.createDataFrame([], "config_id string, kind string")
    path = lake.path_of(CONFIGS)
    fresh.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(path)
    with pytest.raises(SchemaError, match="table configs: column config_json"):
        windows.run(spark, settings)
    assert lake.read(WINDOWS).isEmpty()


def test_nothing_is_brought_or_done_before_configs_are_written_down(
    filled: FilledLake, tmp_path: Path
) -> None:
    copy = filled.copy(tmp_path, preview_quality=40)
    brought: list[Lake] = []

    def fail() -> None:
        raise SchemaError("no configs")

    context = JobContext(copy.lake, copy.settings, "early", num_clips=NUM_CLIPS, before_work=fail)
    before = copy.lake.version(PREVIEWS)
    with pytest.raises(SchemaError, match="no configs"):
        run_stage(context, replace(preview.stage(context), provide=brought.append))
    assert not brought
    assert copy.lake.version(PREVIEWS) == before


def test_what_another_job_does_after_the_only_question_is_not_committed_again(
    filled: FilledLake, tmp_path: Path
) -> None:
    copy = filled.copy(tmp_path, preview_quality=40)
    lake = copy.lake
    late, early = (JobContext(lake, copy.settings, name, num_clips=NUM_CLIPS) for name in ("late", "early"))
    done = {"success": 7, "skipped": 6}

    def provide(_: Lake) -> None:
        assert run_stage(early, preview.stage(early)) == done

    before = lake.version(PREVIEWS)
    assert run_stage(late, replace(preview.stage(late), provide=provide)) == {}
    assert lake.version(PREVIEWS) == before + 1
    config_id = preview_config(copy.settings).config_id
    made = lake.read(PREVIEWS).where(F.col("preview_config_id") == config_id).collect()
    assert [row.run_id for row in made] == ["early"] * sum(done.values())


def test_a_run_without_work_writes_down_its_configs_too(
    spark: SparkSession, lake: Lake, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    report = windows.run(spark, settings)
    assert report.counts == {}
    assert [row.config_id for row in lake.read(CONFIGS).collect()] == list(report.config_ids.values())
