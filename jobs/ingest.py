"""Job `ingest`: files, folders, globs or URIs into the table `clips`.

A file that is there with the same content is left alone; one whose content changed gets a new
`clip_no`, so that everything after it is done again for that clip alone.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import StorageLevel
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from conf.errors import CommitError, SchemaError, SettingsError
from conf.settings import Settings
from jobs.checks import check_clip_columns
from jobs.commits import is_conflict
from jobs.from_curator import clips_of_curator
from jobs.lake import Lake, first_line
from jobs.pipeline import Prepare, run_stages
from jobs.report import Report
from jobs.session import parallelism
from jobs.stage import JobContext, StageKind
from schemas.clips import CLIPS
from schemas.windows import WINDOWS
from udfs.clip_rows import clip_row
from udfs.storage import ClipFile, list_clips

log = logging.getLogger(__name__)

MAX_TRIES = 8
FILE_BYTES = 128 * 1024 * 1024
"""About how many bytes of clips one task writes."""

_LISTED = "uri string, size_bytes long, mtime_us long, local boolean"


def build(df: DataFrame, settings: Settings) -> DataFrame:
    """Turns listed files into rows of `clips` without `clip_no`.

    Args:
        df: `uri`, `size_bytes`, `mtime_us`, `local`.
        settings: by value or by reference.

    Returns:
        Rows of `clips` but for `clip_no`. A file that cannot be read is stored by reference, so that the
        stages after this one say what is wrong with it.
    """
    schema = StructType([field for field in CLIPS.schema if field.name != "clip_no"])
    return df.mapInPandas(_clips_of_files(settings.lake.ingest_mode, schema.fieldNames()), schema)


def preparation(settings: Settings) -> Prepare | None:
    """What adds the clips that the settings name; None where they name none.

    Raises:
        SettingsError: there is nothing where they should be, or two kinds of places are named.
    """
    if settings.lake.from_curator is None:
        return partial(add_clips, files=listed(settings)) if settings.lake.input_path else None
    if settings.lake.input_path:
        raise SettingsError("lake.input_path and lake.from_curator are both set; give one of them")

    def add(context: JobContext) -> None:
        add_rows(context, clips_of_curator(context.lake.spark, settings))

    return add


def add_clips(context: JobContext, files: Sequence[ClipFile]) -> None:
    """Adds the clips of `lake.input_path`; the counts say how many were new, changed and unchanged.

    Raises:
        SettingsError: no input path is set, or nothing is there.
        CommitError: other writers came first every time.
    """
    spark = context.lake.spark
    partitions = max(parallelism(spark), sum(file.size_bytes for file in files) // FILE_BYTES)
    listed = spark.createDataFrame([Row(**vars(file)) for file in files], _LISTED).repartition(partitions)
    add_rows(context, build(listed, context.settings))


def add_rows(context: JobContext, rows: DataFrame) -> None:
    """Adds rows of `clips` that have no `clip_no` yet; counts as `add_clips`.

    Raises:
        SchemaError: a `clip_id` is null or stands twice.
        CommitError: other writers came first every time.
    """
    rows = rows.persist(StorageLevel.DISK_ONLY)
    try:
        _check_ids(rows)
        counts = _commit(context.lake, rows, run_id=context.run_id)
    finally:
        rows.unpersist()
    log.info("stage=clips %s", " ".join(f"{name}={n}" for name, n in sorted(counts.items())))
    context.counts.update({f"clips.{name}": n for name, n in counts.items() if n})


def rows_of_table(clips: DataFrame) -> DataFrame:
    """Turns a table of clips into rows of `clips` without `clip_no`.

    Args:
        clips: `clip_id`, and `clip_bytes` or `clip_uri` or both; the other columns of `clips` where they
            are there. Without `content_id`, bytes count by their hash, and a URI by itself: a file that
            changes under the same URI is then not seen as new work.

    Raises:
        SchemaError: a column is missing.
    """
    check_clip_columns(clips)
    schema = StructType([field for field in CLIPS.schema if field.name != "clip_no"])
    given = clips.select(
        *[
            (F.col(field.name) if field.name in clips.columns else F.lit(None))
            .cast(field.dataType)
            .alias(field.name)
            for field in schema
        ]
    )
    digest = F.substring(F.sha2("clip_bytes", 256), 1, 32)
    by_bytes = F.concat_ws("-", F.length("clip_bytes").cast("string"), digest)
    of_content = F.when(F.col("clip_bytes").isNotNull(), by_bytes).otherwise(F.col("clip_uri"))
    return given.withColumns(
        {
            "source_video": F.coalesce("source_video", "clip_uri", "clip_id"),
            "content_id": F.coalesce("content_id", of_content),
        }
    )


def _check_ids(rows: DataFrame) -> None:
    counted = rows.groupBy("clip_id").count().where("clip_id IS NULL OR count > 1").limit(3).collect()
    if counted:
        names = ", ".join(f"{row[0]} ({row[1]} times)" for row in counted)
        raise SchemaError(f"clips to be added: clip_id must be there, and once; found {names}")


def listed(settings: Settings) -> list[ClipFile]:
    """The files of `lake.input_path`, each once; SettingsError where nothing is there."""
    if not settings.lake.input_path:
        raise SettingsError(
            "lake.input_path is not set; name files, folders, globs or URIs with --input-path"
        )
    found = {file.uri: file for location in settings.lake.input_path for file in list_clips(location)}
    return [found[uri] for uri in sorted(found)]


def _clips_of_files(
    mode: str, columns: list[str]
) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    def read(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            for file in batch.to_dict("records"):
                row = clip_row(ClipFile(**{str(name): value for name, value in file.items()}), mode)
                yield pd.DataFrame([[row.get(name) for name in columns]], columns=columns, dtype=object)

    return read


def _commit(lake: Lake, rows: DataFrame, *, run_id: str) -> Counter[str]:
    """Appends new and changed clips in one commit, numbered on from the last."""
    total = rows.count()
    for _ in range(MAX_TRIES):
        # Before all that is read below, so that whatever another job adds meanwhile refuses this commit.
        app_version = _last_append(lake) + 1
        held = lake.read(CLIPS).selectExpr("clip_id", "content_id AS held_content", "clip_no AS held_no")
        state = rows.select("clip_id", "source_video", "content_id").join(held, "clip_id", "left")
        wanted = state.where("held_no IS NULL OR NOT held_content <=> content_id")
        todo = wanted.select("clip_id", "source_video", "held_no").toArrow().sort_by("source_video")
        if not todo.num_rows:
            return Counter(new=0, changed=0, unchanged=total)
        changed = todo.filter(pc.is_valid(todo["held_no"])).select(["clip_id", "held_no"])
        first = _next_clip_no(lake)
        numbers = pa.array(range(first, first + todo.num_rows), pa.int64())
        numbered = todo.select(["clip_id"]).append_column("clip_no", numbers)
        if _try_commit(lake, rows, numbered, changed, app_version=app_version, run_id=run_id):
            new = todo.num_rows - changed.num_rows
            return Counter(new=new, changed=changed.num_rows, unchanged=total - todo.num_rows)
    raise CommitError(f"table clips: other writers came first {MAX_TRIES} times")


def _last_append(lake: Lake) -> int:
    """The last commit that added clips; unlike clip numbers it never goes down when some are deleted."""
    history = lake.delta(CLIPS).history(20)
    appended = F.max(F.when(F.col("operation") == "WRITE", F.col("version")))
    # Older ones are below the oldest that is looked at.
    return int(history.agg(F.coalesce(appended, F.min("version"))).collect()[0][0])


def _next_clip_no(lake: Lake) -> int:
    """The number after the last one ever used; `windows` still knows those of clips that are gone."""
    used = lake.read(CLIPS).select("clip_no").union(lake.read(WINDOWS).select("clip_no"))
    last = used.agg(F.max("clip_no")).collect()[0][0]
    return 0 if last is None else int(last) + 1


def _try_commit(
    lake: Lake, rows: DataFrame, numbered: pa.Table, changed: pa.Table, *, app_version: int, run_id: str
) -> bool:
    """Replaces changed clips and adds new ones; False when another writer came first."""
    try:
        if changed.num_rows:
            # A job killed between the two commits finds these clips new the next time. The number is part
            # of the condition so that a clip which another job has just replaced stays.
            gone = lake.spark.createDataFrame(changed).alias("gone")
            same = "held.clip_id = gone.clip_id AND held.clip_no = gone.held_no"
            lake.delta(CLIPS).alias("held").merge(gone, same).whenMatchedDelete().execute()
        fresh = rows.join(F.broadcast(lake.spark.createDataFrame(numbered)), "clip_id")
        lake.append(CLIPS, fresh, app_id="clips:ingest", app_version=app_version, note=run_id)
    except Exception as error:
        if not is_conflict(error):
            raise
        log.info("commit conflict table=clips: %s", first_line(error))
        return False
    # Clips have no column for the run, and a job at the same moment would write the very same rows.
    return lake.is_noted(CLIPS, run_id)


def kinds(settings: Settings) -> list[StageKind]:
    """No stage: clips are added before the first one."""
    return []


def run(spark: SparkSession, settings: Settings) -> Report:
    """Adds the clips of `lake.input_path` to the lake."""
    # Without any place, `listed` says how to name one.
    prepare = preparation(settings) or partial(add_clips, files=listed(settings))
    return run_stages(spark, settings, command="ingest", kinds=kinds(settings), prepare=prepare, ingests=True)


def main(argv: list[str] | None = None) -> int:
    """The command `captionlake ingest`; returns the exit code."""
    from jobs.cli import main as cli

    return cli(["ingest", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
