"""Job `preview`: ffmpeg over the windows, animated WebPs into the table `previews`."""

import sys

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.udf import UserDefinedFunction

from conf.identity import prep_config, preview_config
from conf.settings import Settings
from jobs.chunks import Chunk
from jobs.contract import answer_each_window, one_row_per_clip
from jobs.lake import Lake
from jobs.pending import pending_windows
from jobs.pipeline import run_stages
from jobs.report import Report
from jobs.session import parallelism
from jobs.stage import JobContext, Stage, StageKind, with_clips
from jobs.windows import media_limits
from schemas.previews import PREVIEWS
from udfs.ffmpeg import check_ffmpeg
from udfs.preview import PreviewParams
from udfs.preview_udf import FIELDS, preview_webp_udf

_WINDOW_COLUMNS = ("window_id", "prep_config_id", "attempt", "window_index")
_ANSWER_COLUMNS = ("webp", "width", "height", "num_frames", "num_bytes", "preview_status", "preview_error")


def build(df: DataFrame, settings: Settings) -> DataFrame:
    """Makes previews of windows.

    Args:
        df: one row a clip: `clip_no`, `clip_id`, `clip_bytes`, `clip_uri` and `windows`, an array of the
            windows to be shown with their `attempt`.
        settings: how previews look.

    Returns:
        The columns of `previews` without those that a commit fills in, one row for each window.
    """
    answered = answer_each_window(df, preview_udf(settings), FIELDS)
    return rows_of(answered, settings)


def rows_of(answered: DataFrame, settings: Settings) -> DataFrame:
    """The rows for the table out of windows with their answers; see `jobs.contract.answer_each_window`."""
    return answered.select(
        "clip_no",
        "clip_id",
        *[F.col(f"window.{name}").alias(name) for name in _WINDOW_COLUMNS],
        *[F.col(f"answer.{name}").alias(name) for name in _ANSWER_COLUMNS],
        F.lit(preview_config(settings).config_id).alias("preview_config_id"),
    )


def preview_udf(settings: Settings) -> UserDefinedFunction:
    """The UDF `preview_webp` under these settings."""
    return preview_webp_udf(preview_params(settings), media_limits(settings))


def preview_params(settings: Settings) -> PreviewParams:
    """What the workers need to know, as plain values."""
    return PreviewParams(**settings.preview.model_dump())


def stage(context: JobContext) -> Stage:
    """The stage that shows the windows which have no preview under this config."""
    settings = context.settings
    config = preview_config(settings)
    prep_id = prep_config(settings).config_id
    mine = (F.col("preview_config_id") == config.config_id) & (F.col("prep_config_id") == prep_id)
    failed = f"preview_status = 'error' AND preview_config_id = '{config.config_id}'"

    def pending(lake: Lake, where: str) -> DataFrame:
        return pending_windows(context, lake, where, table=PREVIEWS, config=mine, failed=failed)

    def rows(lake: Lake, chunk: Chunk, windows: DataFrame) -> DataFrame:
        clips = with_clips(lake, chunk, one_row_per_clip(windows), partitions=parallelism(lake.spark) * 2)
        return build(clips, settings)

    return Stage(PREVIEWS, "preview_config_id", config, "windows", pending, rows)


def _check(settings: Settings) -> None:
    check_ffmpeg()


STAGE = StageKind("previews", stage, _check)


def kinds(settings: Settings) -> list[StageKind]:
    """The stages of the command."""
    return [STAGE]


def run(spark: SparkSession, settings: Settings) -> Report:
    """Makes the previews that the windows of the lake lack."""
    return run_stages(spark, settings, command="preview", kinds=kinds(settings))


def main(argv: list[str] | None = None) -> int:
    """The command `captionlake preview`; returns the exit code."""
    from jobs.cli import main as cli

    return cli(["preview", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
