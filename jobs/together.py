"""Captions and previews in one go, as part of `run`: a clip that needs both is decoded once for both.

Only windows that lack a caption and a preview are done here. What lacks one of them is left to the stage of
that table, as is the rest of a commit that was cut off between its two tables.
"""

from dataclasses import replace

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.settings import Settings
from jobs import caption, preview
from jobs.chunks import Chunk
from jobs.contract import answer_each_window, one_row_per_clip
from jobs.lake import Lake
from jobs.models import caption_engine
from jobs.session import parallelism
from jobs.stage import JobContext, Stage, StageKind, with_clips
from udfs.prepare_udf import FIELDS, caption_and_preview_udf

_KEY = ["window_id", "prep_config_id"]


def build(df: DataFrame, settings: Settings) -> DataFrame:
    """Captions windows and makes their previews.

    Args:
        df: one row a clip: `clip_no`, `clip_id`, `clip_bytes`, `clip_uri` and `windows`, an array of the
            windows with their `attempt` for the caption and their `preview_attempt`.
        settings: model, prompts, how the model answers, and how previews look.

    Returns:
        One row for each window: `clip_no`, `clip_id`, the struct `window` and the struct `answer`, with the
        structs `caption` and `preview`.
    """
    udf = caption_and_preview_udf(
        caption_engine(settings),
        caption.caption_plan(settings),
        preview.preview_params(settings),
        min_in_flight=settings.caption_generation.caption_batch_size,
    )
    return answer_each_window(df, udf, FIELDS)


def caption_rows(answered: DataFrame, settings: Settings) -> DataFrame:
    """The rows for `captions` out of those of `build`."""
    return caption.rows_of(answered.withColumn("answer", F.col("answer.caption")), settings)


def preview_rows(answered: DataFrame, settings: Settings) -> DataFrame:
    """The rows for `previews` out of those of `build`."""
    window = F.col("window").withField("attempt", F.col("window.preview_attempt"))
    shown = answered.withColumns({"answer": F.col("answer.preview"), "window": window})
    return preview.rows_of(shown, settings)


def stage(context: JobContext) -> Stage:
    """The stage that captions and shows the windows which have neither under these configs."""
    settings = context.settings
    captions, previews = caption.stage(context), preview.stage(context)

    def pending(lake: Lake, where: str) -> DataFrame:
        shown = previews.pending(lake, where).select(*_KEY, F.col("attempt").alias("preview_attempt"))
        return captions.pending(lake, where).join(shown, _KEY)

    def rows(lake: Lake, chunk: Chunk, windows: DataFrame) -> DataFrame:
        clips = with_clips(lake, chunk, one_row_per_clip(windows), partitions=parallelism(lake.spark))
        return build(clips, settings)

    fills = (
        captions.fill(lambda answered: caption_rows(answered, settings)),
        previews.fill(lambda answered: preview_rows(answered, settings)),
    )
    return replace(captions, pending=pending, rows=rows, fills=fills, engine="answer.caption.engine")


def _check(settings: Settings) -> None:
    caption.STAGE.check(settings)
    preview.STAGE.check(settings)


STAGE = StageKind("captions", stage, _check)
"""Its time counts as that of the captions."""
