"""Work is done once a row: evaluations are counted where they happen, in the plans that the jobs run."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType, StructField, StructType
from pyspark.sql.udf import UserDefinedFunction

from conf.identity import ConfigIdentity
from conf.settings import Settings
from jobs import preview, windows
from jobs.chunks import Chunk
from jobs.contract import MAX_WINDOWS_PER_ROW, answer_each_window, one_row_per_clip
from jobs.lake import Lake
from jobs.pending import pending_windows
from jobs.preview import preview_params
from jobs.stage import JobContext, Stage, run_stage, with_clips
from jobs.windows import media_limits
from schemas.clips import CLIPS
from schemas.previews import PREVIEWS
from schemas.windows import WINDOWS
from tests.jobs.conftest import CLIP_FLAGS, FilledLake, ingest_clips, run_alone
from tests.jobs.opened import Opens
from udfs.cutting import ClipRef, WindowRule, cut_clip
from udfs.once import once_a_row
from udfs.preview_udf import FIELDS as PREVIEW_FIELDS
from udfs.previewing import PreviewWork, preview_clip
from udfs.storage import local_path

ANSWER = ArrayType(
    StructType([StructField(name, StringType()) for name in ("clip_id", "window_id", "preview_status")])
)
CONFIG = ConfigIdentity("previews", "counted")

Answers = list[dict[str, str]]


def counting_udf(log: Path, change: Callable[[Answers], Answers | None] | None = None) -> UserDefinedFunction:
    """A UDF of clips that writes down every row it is given; `change` spoils its answers."""
    path = str(log)

    def answer(
        batches: Iterator[tuple[pd.Series, pd.Series, pd.Series, pd.Series]],
    ) -> Iterator[pd.Series]:
        for batch in batches:
            rows = []
            for clip_id, _, _, clip_windows in zip(*batch, strict=True):
                with open(path, "a") as out:  # noqa: PTH123
                    out.write(f"{clip_id}\n")
                answers = [
                    {"clip_id": clip_id, "window_id": window["window_id"], "preview_status": "success"}
                    for window in clip_windows
                ]
                rows.append(change(answers) if change else answers)
            yield pd.Series(rows, dtype=object)

    return once_a_row(answer, ANSWER)


def test_a_stage_evaluates_its_udf_once_for_each_clip_from_pending_rows_to_the_commit(
    filled: FilledLake, tmp_path: Path
) -> None:
    """Explode, the check of the contract, counts, tries and the write all come after the UDF."""
    copy = filled.copy(tmp_path, windows_per_commit=4)
    lake, log = copy.lake, tmp_path / "log"
    context = JobContext(lake, copy.settings, "counted")

    def pending(lake: Lake, where: str) -> DataFrame:
        mine = F.col("preview_config_id") == CONFIG.config_id
        return pending_windows(context, lake, where, table=PREVIEWS, config=mine, failed="false")

    def rows(lake: Lake, chunk: Chunk, keys: DataFrame) -> DataFrame:
        clips = with_clips(lake, chunk, one_row_per_clip(keys), partitions=2)
        answered = answer_each_window(clips, counting_udf(log), ("window_id",))
        missing = [F.lit(None).cast(PREVIEWS.schema[name].dataType).alias(name) for name in EMPTY]
        return answered.select(
            "clip_no",
            "clip_id",
            *[F.col(f"window.{name}") for name in ("window_id", "prep_config_id", "attempt", "window_index")],
            F.col("answer.preview_status"),
            F.lit(CONFIG.config_id).alias("preview_config_id"),
            *missing,
        )

    stage = Stage(PREVIEWS, "preview_config_id", CONFIG, "windows", pending, rows)
    num_windows = lake.read(WINDOWS).count()
    before = lake.version(PREVIEWS)
    assert run_stage(context, stage) == {"success": num_windows}
    clip_ids = [row.clip_id for row in lake.read(CLIPS).select("clip_id").collect()]
    assert Counter(log.read_text().split()) == Counter(clip_ids)
    assert lake.version(PREVIEWS) - before > 2
    assert run_stage(context, stage) == {}
    assert len(log.read_text().split()) == len(clip_ids)
    mine = lake.read(PREVIEWS).where(F.col("preview_config_id") == CONFIG.config_id)
    assert sorted(row.window_id for row in mine.collect()) == sorted(
        row.window_id for row in lake.read(WINDOWS).collect()
    )


EMPTY = ("webp", "width", "height", "num_frames", "num_bytes", "preview_error")


def python_nodes(frame: DataFrame) -> list[str]:
    """The nodes of the optimized plan that call Python."""
    plan = frame._jdf.queryExecution().optimizedPlan().toString()
    return re.findall(r"\b(\w*(?:EvalPython|MapInPandas|MapInArrow))\b", plan)


def test_the_plans_of_the_jobs_call_python_once(filled: FilledLake) -> None:
    lake, settings = filled.lake, filled.settings
    context = JobContext(lake, settings, "plan")
    whole = Chunk(0, 100, 100)
    keys = windows.stage(context).pending(lake, "true")
    assert python_nodes(windows.stage(context).rows(lake, whole, keys)) == ["MapInPandas"]
    keys = lake.read(WINDOWS).drop("run_id", "commit_seq", "created_at")
    assert python_nodes(preview.stage(context).rows(lake, whole, keys)) == ["ArrowEvalPython"]


def test_windows_and_previews_open_each_clip_as_often_as_one_look_needs(
    filled: FilledLake, lake: Lake, make_settings: Callable[..., Settings]
) -> None:
    flags = {name.removeprefix("--").replace("-", "_"): value for name, value in CLIP_FLAGS.items()}
    good = ("one window.mp4", "three windows ü.mkv", "upright #1.mov", "too short.mp4", "text.mp4")
    places = tuple(str(filled.clips / name) for name in good)
    settings = make_settings(input_path=places, windows_per_commit=2, **flags)
    ingest_clips(lake, settings)
    with Opens(filled.clips) as cut_by_job:
        run_alone(lake, settings, windows.STAGE)
    with Opens(filled.clips) as shown_by_job:
        run_alone(lake, settings, preview.STAGE)
    with Opens(filled.clips) as cut_once:
        cut_directly(lake, settings)
    with Opens(filled.clips) as shown_once:
        show_directly(lake, settings)
    assert set(cut_once.counts) == set(good)
    assert cut_by_job.counts == cut_once.counts
    assert shown_by_job.counts == shown_once.counts
    assert set(shown_once.counts) == {"one window.mp4", "three windows ü.mkv", "upright #1.mov"}


def cut_directly(lake: Lake, settings: Settings) -> None:
    preparation = settings.caption_preparation
    rule = WindowRule(preparation.sampling_fps, preparation.window_size, preparation.remainder_threshold)
    for row in lake.read(CLIPS).collect():
        clip = ClipRef(row.clip_id, row.clip_no, row.content_id, None, row.clip_uri)
        cut_clip(clip, rule, media_limits(settings))


def show_directly(lake: Lake, settings: Settings) -> None:
    rows = lake.read(WINDOWS).orderBy("window_index").collect()
    for clip in lake.read(CLIPS).collect():
        works = [
            PreviewWork(**{name: row[name] for name in PREVIEW_FIELDS})
            for row in rows
            if row.clip_no == clip.clip_no
        ]
        uri = clip.clip_uri
        preview_clip(
            clip.clip_id, None, uri, works, params=preview_params(settings), limits=media_limits(settings)
        )
        assert local_path(uri)


def two_clips(spark: SparkSession) -> DataFrame:
    """Two clips with two and three windows, as a stage hands them to its UDF."""
    rows = [
        (clip_no, f"clip{clip_no}", None, "uri", [{"window_id": f"w{clip_no}.{i}"} for i in range(count)])
        for clip_no, count in ((1, 2), (2, 3))
    ]
    schema = "clip_no long, clip_id string, clip_bytes binary, clip_uri string, "
    return spark.createDataFrame(rows, schema + "windows array<struct<window_id: string>>").coalesce(1)


def test_each_window_gets_its_own_answer(spark: SparkSession, tmp_path: Path) -> None:
    answered = answer_each_window(two_clips(spark), counting_udf(tmp_path / "log"), ("window_id",))
    rows = answered.where("answer.preview_status = 'success'").collect()
    assert [(row.clip_id, row.window.window_id, row.answer.window_id) for row in rows] == [
        (f"clip{clip}", f"w{clip}.{i}", f"w{clip}.{i}")
        for clip, count in ((1, 2), (2, 3))
        for i in range(count)
    ]
    assert (tmp_path / "log").read_text().split() == ["clip1", "clip2"]


BREACHES: dict[str, Callable[[Answers], Any]] = {
    "answers in another order": lambda answers: answers[::-1],
    "an answer too few": lambda answers: answers[:-1],
    "an answer too many": lambda answers: [*answers, answers[-1]],
    "no answers": lambda answers: None,
    "the answers of another clip": lambda answers: [answer | {"clip_id": "clip9"} for answer in answers],
    "the windows of another clip": lambda answers: [answer | {"window_id": "w9"} for answer in answers],
    "an answer that does not say whose it is": lambda answers: [
        answer | {"window_id": None} for answer in answers
    ],
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_mixed_up_answer_stops_the_job_and_lands_on_no_window(
    spark: SparkSession, tmp_path: Path, breach: str
) -> None:
    udf = counting_udf(tmp_path / "log", BREACHES[breach])
    with pytest.raises(PySparkException, match="row contract broken: clip_id=clip1"):
        answer_each_window(two_clips(spark), udf, ("window_id",)).collect()


def test_a_long_clip_becomes_several_rows_with_its_windows_in_order(spark: SparkSession) -> None:
    count = 2 * MAX_WINDOWS_PER_ROW + 3
    rows = [(7, "clip7", f"w{i}", i) for i in reversed(range(count))] + [(8, "clip8", "none", None)]
    frame = spark.createDataFrame(rows, "clip_no long, clip_id string, window_id string, window_index int")
    gathered = one_row_per_clip(frame.repartition(3)).collect()
    slices = sorted([w.window_index for w in row.windows] for row in gathered if row.clip_no == 7)
    assert [len(part) for part in slices] == [MAX_WINDOWS_PER_ROW, MAX_WINDOWS_PER_ROW, 3]
    assert [index for part in slices for index in part] == list(range(count))
    assert [row.windows[0].window_id for row in gathered if row.clip_no == 8] == ["none"]


def test_a_chunk_that_another_job_has_done_meanwhile_is_no_error(filled: FilledLake, tmp_path: Path) -> None:
    copy = filled.copy(tmp_path)
    context = JobContext(copy.lake, copy.settings, "late")
    looks: list[str] = []

    def pending(lake: Lake, where: str) -> DataFrame:
        looks.append(where)
        keys = lake.read(WINDOWS).drop("run_id", "commit_seq", "created_at")
        return keys.limit(3 if len(looks) == 1 else 0)

    def rows(lake: Lake, chunk: Chunk, keys: DataFrame) -> DataFrame:
        return preview.stage(context).rows(lake, chunk, keys)

    version = copy.lake.version(PREVIEWS)
    stage = Stage(PREVIEWS, "preview_config_id", CONFIG, "windows", pending, rows)
    assert run_stage(context, stage) == {}
    assert len(looks) > 1
    assert copy.lake.version(PREVIEWS) == version
