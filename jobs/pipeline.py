"""Running commands over a lake: one run, its stages in order, its report."""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.errors import SettingsError
from conf.settings import Settings
from jobs.checks import check_clips
from jobs.configs import record_configs
from jobs.idle import idle_share
from jobs.lake import Lake, first_line
from jobs.precision import with_effective_precision
from jobs.report import Report
from jobs.session import check_gpu_slots, check_packages, small_batches
from jobs.stage import JobContext, StageKind, run_stage
from jobs.views import create_in_catalog
from schemas.captions import CAPTIONS
from schemas.clips import CLIPS
from schemas.enhancements import ENHANCEMENTS

log = logging.getLogger(__name__)

Prepare = Callable[[JobContext], None]


def run_stages(
    spark: SparkSession,
    settings: Settings,
    *,
    command: str,
    kinds: Sequence[StageKind],
    prepare: Prepare | None = None,
    ingests: bool = False,
) -> Report:
    """Fills tables of the lake and writes down the run.

    Args:
        spark: the session.
        settings: the settings.
        command: what the run is called in `runs`.
        kinds: which stages to run, in this order.
        prepare: called with the context before the first stage.
        ingests: `prepare` adds clips, so the lake may be a new one.

    Returns:
        The report, after its row is in `runs`.

    Raises:
        SettingsError: something that the stages need is missing.
        SchemaError: a table is not as it must be.
        EngineError: the engine cannot start, or died for good.
    """
    for kind in kinds:
        kind.check(settings)
    lake = Lake(spark, settings.lake.output_path)
    if not ingests and not lake.exists(CLIPS):
        raise SettingsError(
            f"there is no table clips in the lake {lake.location}: check lake.output_path, "
            "or add clips with `captionlake ingest` or `captionlake run --input-path`"
        )
    if {"captions", "enhancements"} & {kind.table for kind in kinds}:
        check_gpu_slots(spark)
    check_packages(spark)
    lake.create()
    report = Report(run_id=str(uuid.uuid4()), command=command, settings_json=settings.to_json())
    context = JobContext(lake, with_effective_precision(spark, settings), report.run_id)
    try:
        with small_batches(spark):
            if prepare:
                _timed(report, "prepare", partial(prepare, context))
            context.num_clips = check_clips(lake)
            stages = [kind.make(context) for kind in kinds]
            fills = [fill for stage in stages for fill in stage.all_fills]
            report.config_ids = {fill.table.name: fill.config.config_id for fill in fills}
            with ThreadPoolExecutor(1) as pool:
                # Beside the question what the first stage has to do: both take a second or two.
                recording = pool.submit(record_configs, lake, [fill.config for fill in fills])
                context.before_work = recording.result
                for kind, stage in zip(kinds, stages, strict=True):
                    _timed(report, kind.table, partial(run_stage, context, stage))
                recording.result()
    except BaseException as error:
        report.error = f"{type(error).__name__}: {first_line(error)}"
        raise
    finally:
        _close(report, context)
    create_in_catalog(lake)
    return report


def _timed(report: Report, name: str, work: Callable[[], object]) -> None:
    start = time.monotonic()
    try:
        work()
    finally:
        spent = report.stage_seconds.get(name, 0.0)
        report.stage_seconds[name] = spent + time.monotonic() - start


def _close(report: Report, context: JobContext) -> None:
    """Writes the run's row, also for a run that failed."""
    report.ended_at = datetime.now(UTC)
    report.counts = dict(context.counts)
    report.gpu_idle_share = idle_share(context.readings)
    try:
        report.generated_tokens = _generated_tokens(context)
        report.save(context.lake)
    except Exception:
        if report.error is None:
            raise
        log.exception("the run's row could not be written run_id=%s", report.run_id)


def _generated_tokens(context: JobContext) -> int:
    """Tokens that the models wrote in this run, from its rows."""
    total = 0
    for table in (CAPTIONS, ENHANCEMENTS):
        if any(name.startswith(f"{table.name}.") for name in context.counts):
            rows = context.lake.read(table).where(F.col("run_id") == context.run_id)
            total += rows.agg(F.sum("output_tokens")).collect()[0][0] or 0
    return total
