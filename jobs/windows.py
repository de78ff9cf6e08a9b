"""Job `windows`: a flatMap of clips into the table `windows`."""

import sys

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from conf.identity import prep_config
from conf.settings import Settings
from jobs.chunks import Chunk
from jobs.lake import Lake
from jobs.pipeline import run_stages
from jobs.report import Report
from jobs.session import parallelism
from jobs.stage import JobContext, Stage, StageKind, with_clips
from schemas.clips import CLIPS
from schemas.windows import WINDOWS
from udfs.cutting import WindowRule
from udfs.video import Limits
from udfs.windows_udf import windows_of_clips

_FILLED_LATER = ("prep_config_id", "run_id", "commit_seq", "created_at")


def build(df: DataFrame, settings: Settings) -> DataFrame:
    """Turns clips into windows.

    Args:
        df: one row a clip: `clip_id`, `clip_no`, `content_id`, `clip_bytes`, `clip_uri`, `attempt`.
        settings: the window rule and the limits.

    Returns:
        The columns of `windows` without those that a commit fills in. A clip without a window gives
        one row with the reason.
    """
    schema = StructType([field for field in WINDOWS.schema if field.name not in _FILLED_LATER])
    flat_map = windows_of_clips(
        window_rule(settings),
        media_limits(settings),
        schema.fieldNames(),
        check_frames=settings.media.check_frames,
        verbose=settings.caption_preparation.verbose,
    )
    columns = ("clip_id", "clip_no", "content_id", "clip_bytes", "clip_uri", "attempt")
    rows = df.select(*columns).mapInPandas(flat_map, schema)
    return rows.withColumn("prep_config_id", F.lit(prep_config(settings).config_id))


def stage(context: JobContext) -> Stage:
    """The stage that cuts the clips which have no windows under this config."""
    config = prep_config(context.settings)

    def pending(lake: Lake, where: str) -> DataFrame:
        clips = lake.read(CLIPS).where(where).select("clip_id", "clip_no", "content_id")
        cut = lake.read(WINDOWS).where(where).where(F.col("prep_config_id") == config.config_id)
        first = clips.join(cut.select("clip_no").distinct(), "clip_no", "left_anti")
        first = first.withColumn("attempt", F.lit(1))
        if context.retry is None:
            return first
        failed = context.retry.where(where).where("window_status = 'error'")
        failed = failed.where(F.col("prep_config_id") == config.config_id)
        return clips.join(failed.selectExpr("clip_no", "window_attempt + 1 AS attempt"), "clip_no")

    def rows(lake: Lake, chunk: Chunk, keys: DataFrame) -> DataFrame:
        df = with_clips(lake, chunk, keys, partitions=parallelism(lake.spark) * 2)
        return build(df, context.settings)

    return Stage(WINDOWS, "prep_config_id", config, "clips", pending, rows)


def window_rule(settings: Settings) -> WindowRule:
    """The window rule as plain values, for the workers."""
    preparation = settings.caption_preparation
    return WindowRule(preparation.sampling_fps, preparation.window_size, preparation.remainder_threshold)


def media_limits(settings: Settings) -> Limits:
    """The limits of decoding as plain values, for the workers."""
    return Limits(max_seconds=settings.media.max_decode_s, max_pixels=settings.media.max_frame_pixels)


STAGE = StageKind("windows", stage)


def kinds(settings: Settings) -> list[StageKind]:
    """The stages of the command."""
    return [STAGE]


def run(spark: SparkSession, settings: Settings) -> Report:
    """Cuts the clips of the lake that have no windows yet."""
    return run_stages(spark, settings, command="windows", kinds=kinds(settings))


def main(argv: list[str] | None = None) -> int:
    """The command `captionlake windows`; returns the exit code."""
    from jobs.cli import main as cli

    return cli(["windows", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
