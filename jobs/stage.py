"""Running one stage over a lake: find what is pending, work in bounded chunks, commit each once."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.identity import ConfigIdentity
from conf.settings import Settings
from jobs.chunks import Chunk, plan_chunks
from jobs.commits import commit_rows
from jobs.lake import Lake
from jobs.progress import Progress
from jobs.session import gpu_count
from schemas.clips import CLIPS
from schemas.table import Table
from udfs.engine.requests import EngineReading

log = logging.getLogger(__name__)

CHUNKS_IN_FLIGHT = 2
"""So that the cards don't drain while a chunk commits."""

WINDOWS_PER_GPU = 1000


@dataclass
class JobContext:
    """What the stages of one run share.

    Attributes:
        lake: the tables.
        settings: the settings of the run.
        run_id: id of the run.
        counts: rows written, by `table.status`.
        retry: rows of `window_captions` to be tried again; None in an ordinary run.
        readings: how long the engines had worked when they answered, at most one for each engine, chunk and
            second; chunks extend it from threads of their own.
        num_clips: clips of the lake when the run began; None where nobody has counted them.
        before_work: called when there is work, before anything of it is done; returns once the table
            `configs` says what its config ids stand for, and raises what kept it from that.
    """

    lake: Lake
    settings: Settings
    run_id: str
    counts: Counter[str] = field(default_factory=Counter)
    retry: DataFrame | None = None
    readings: list[EngineReading] = field(default_factory=list)
    num_clips: int | None = None
    before_work: Callable[[], object] = lambda: None

    @property
    def per_commit(self) -> int:
        """Most windows of one commit."""
        chosen = self.settings.lake.windows_per_commit
        return chosen or WINDOWS_PER_GPU * max(1, gpu_count(self.lake.spark))


@dataclass(frozen=True)
class Fill:
    """What a stage commits to one table.

    Attributes:
        table: the table.
        config_column: column of that table with the config id.
        config: what the config id stands for.
        select: the stage's rows to the rows for this table.
    """

    table: Table
    config_column: str
    config: ConfigIdentity
    select: Callable[[DataFrame], DataFrame]


@dataclass(frozen=True)
class Stage:
    """One stage over one config.

    Attributes:
        table: the table that it fills.
        config_column: column of that table with the config id.
        config: what the config id stands for.
        unit: what it counts, in the plural.
        pending: `(lake, condition on clip_no)` to the keys without a row, with `clip_no` and `attempt`.
        rows: pending keys of one chunk to the rows for the table.
        provide: called once before the first chunk, where there is work: brings what the executors need.
        select: the rows to those of the table.
        fills: where the rows go, one commit after the other; when empty, to the table.
        engine: where its rows have the reading of the engine that answered, see `caption_udf.ENGINE`; None
            for a stage without a model.
    """

    table: Table
    config_column: str
    config: ConfigIdentity
    unit: str
    pending: Callable[[Lake, str], DataFrame]
    rows: Callable[[Lake, Chunk, DataFrame], DataFrame]
    provide: Callable[[Lake], None] = lambda lake: None
    select: Callable[[DataFrame], DataFrame] = lambda rows: rows
    fills: tuple[Fill, ...] = ()
    engine: str | None = None

    def fill(self, select: Callable[[DataFrame], DataFrame]) -> Fill:
        """What goes to the stage's own table out of rows that are not yet those of the table."""
        return Fill(self.table, self.config_column, self.config, select)

    @property
    def all_fills(self) -> tuple[Fill, ...]:
        """Where the rows go."""
        return self.fills or (self.fill(self.select),)


def no_check(settings: Settings) -> None:
    """For stages that need nothing but the lake."""


@dataclass(frozen=True)
class StageKind:
    """A stage before its run is known.

    Attributes:
        table: name of the table that it fills.
        make: the stage for a run.
        check: raises SettingsError, before any work starts, when something that the stage needs is missing.
    """

    table: str
    make: Callable[[JobContext], Stage]
    check: Callable[[Settings], None] = no_check


def run_stage(context: JobContext, stage: Stage) -> Counter[str]:
    """Does all pending work of a stage; returns the rows written, by status."""
    lake = context.lake
    chunks, keys = find_work(context, stage)
    total = sum(chunk.num_items for chunk in chunks)
    written: Counter[str] = Counter()
    names = "+".join(fill.table.name for fill in stage.all_fills)
    if not total:
        log.info("stage=%s nothing to do", names)
        return written
    log.info("stage=%s %s=%d commits=%d", names, stage.unit, total, len(chunks))
    context.before_work()
    stage.provide(lake)
    commits, counting = threading.Lock(), threading.Lock()
    with Progress(names, total=total, unit=stage.unit) as progress:

        def work(chunk: Chunk) -> None:
            counted = _run_chunk(context, stage, chunk, keys, commits)
            with counting:
                context.counts.update(counted)
                for name, count in counted.items():
                    written[name.partition(".")[2]] += count
            progress.advance(chunk.num_items)

        in_parallel(work, chunks)
    return written


def find_work(context: JobContext, stage: Stage) -> tuple[list[Chunk], DataFrame | None]:
    """Asks the lake what is pending.

    Returns:
        The chunks, and the pending keys where the lake is small and one chunk holds all of them. Else None: a
        chunk asks for its own keys when its turn comes, since there may be any number of them, and other
        jobs may have done some meanwhile. What another job does after the only question, this one does too;
        the commit drops it.
    """
    lake, per_commit = context.lake, context.per_commit
    pending = stage.pending(lake, "true")
    if context.num_clips is not None and context.num_clips <= per_commit:
        # One question in place of two, each of which takes longer than the work on a clip. Bounded, because
        # few clips may have any number of windows.
        table = pending.limit(per_commit + 1).toArrow()
        if table.num_rows <= per_commit:
            counts = sorted(Counter(table["clip_no"].to_pylist()).items())
            chunks = list(plan_chunks(counts, per_commit=per_commit))
            return chunks, lake.spark.createDataFrame(table, pending.schema) if len(chunks) == 1 else None
    rows = pending.groupBy("clip_no").count().orderBy("clip_no").collect()
    return list(plan_chunks(((row[0], row[1]) for row in rows), per_commit=per_commit)), None


def _run_chunk(
    context: JobContext, stage: Stage, chunk: Chunk, keys: DataFrame | None, commits: threading.Lock
) -> Counter[str]:
    """Does a chunk and commits it, one at a time; returns the rows written, by `table.status`."""
    lake = context.lake
    if keys is None:
        pending = stage.pending(lake, chunk.where)
        # Bounded by the chunk, and read by several joins: worked out once.
        keys = lake.spark.createDataFrame(pending.toArrow(), pending.schema)
    rows = stage.rows(lake, chunk, keys).persist(StorageLevel.DISK_ONLY)
    try:
        # The work happens here, once; the commit and its tries read what is kept. Nothing is left where
        # another job was faster, or where the clips are gone.
        num_rows, readings = count_rows(rows, stage.engine)
        # Also of rows that another job commits first: the model has worked for them.
        context.readings.extend(readings)
        if not num_rows:
            return Counter()
        with commits:
            counted: Counter[str] = Counter()
            for fill in stage.all_fills:
                written = commit_rows(
                    lake,
                    fill.table,
                    fill.select(rows),
                    config=(fill.config_column, fill.config.config_id),
                    chunk=chunk,
                    run_id=context.run_id,
                )
                counted.update({f"{fill.table.name}.{name}": n for name, n in written.items()})
            return counted
    finally:
        rows.unpersist()


def count_rows(rows: DataFrame, engine: str | None) -> tuple[int, list[EngineReading]]:
    """Evaluates each row once, and says how many there are.

    Args:
        rows: any rows.
        engine: column with the engine's reading; None where there is none.

    Returns:
        The number of rows, and the last reading of each engine in each second.
    """
    if engine is None:
        return rows.count(), []
    reading = F.col(engine)
    seconds = rows.groupBy(reading["engine_id"].alias("engine_id"), F.floor(reading["at_s"])).agg(
        F.max(reading["at_s"]).alias("at_s"),
        F.max(reading["busy_s"]).alias("busy_s"),
        F.count("*").alias("num_rows"),
    )
    found = seconds.collect()
    readings = [EngineReading(row.engine_id, row.at_s, row.busy_s) for row in found if row.engine_id]
    return sum(row.num_rows for row in found), readings


def in_parallel(work: Callable[[Chunk], None], chunks: list[Chunk]) -> None:
    """Runs `work` over the chunks, two at a time; after a failure, which is raised, none is begun."""
    stopped = threading.Event()

    def guarded(chunk: Chunk) -> None:
        if stopped.is_set():
            return
        try:
            work(chunk)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(CHUNKS_IN_FLIGHT) as pool:
        futures = [pool.submit(guarded, chunk) for chunk in chunks]
        try:
            wait(futures)
        except BaseException:
            stopped.set()
            raise
    for future in futures:
        future.result()


def with_clips(lake: Lake, chunk: Chunk, work: DataFrame, *, partitions: int) -> DataFrame:
    """Adds `clip_bytes` and `clip_uri` to rows of one clip each, without shuffling a blob.

    Args:
        lake: where `clips` is.
        chunk: the clips.
        work: rows with `clip_no`, small enough to be broadcast.
        partitions: over how many tasks clips by reference are spread.
    """
    clips = lake.read(CLIPS).where(chunk.where)
    by_value = clips.where("clip_uri IS NULL").select("clip_no", "clip_bytes", "clip_uri")
    no_bytes: Column = F.lit(None).cast("binary").alias("clip_bytes")
    by_reference = clips.where("clip_uri IS NOT NULL").select("clip_no", no_bytes, "clip_uri")
    spread = by_reference.join(F.broadcast(work), "clip_no").repartition(partitions)
    return by_value.join(F.broadcast(work), "clip_no").unionByName(spread)
