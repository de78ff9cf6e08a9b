"""Job `caption`: the vision-language model over the windows, into the table `captions`."""

import sys

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.udf import UserDefinedFunction

from conf.identity import ModelIdentity, caption_config, prep_config
from conf.prompts import caption_prompt, stage2_prompt
from conf.settings import Settings
from conf.variants import model_variant
from jobs.chunks import Chunk
from jobs.contract import answer_each_window, one_row_per_clip
from jobs.lake import Lake
from jobs.models import answering, caption_engine, caption_model
from jobs.pending import pending_windows
from jobs.pipeline import run_stages
from jobs.report import Report
from jobs.session import parallelism
from jobs.stage import JobContext, Stage, StageKind, with_clips
from jobs.weights import provide_weights
from jobs.windows import media_limits
from schemas.captions import CAPTIONS
from udfs.caption_udf import FIELDS, caption_windows_udf
from udfs.captioning import CaptionPlan

_WINDOW_COLUMNS = (
    "window_id",
    "prep_config_id",
    "attempt",
    "window_index",
    "start_frame",
    "end_frame",
    "start_s",
    "end_s",
)
_ANSWER_COLUMNS = (
    "caption",
    "stage1_caption",
    "caption_status",
    "caption_error",
    "finish_reason",
    "prompt_tokens",
    "output_tokens",
    "latency_s",
)


def build(df: DataFrame, settings: Settings) -> DataFrame:
    """Captions windows.

    Args:
        df: one row a clip: `clip_no`, `clip_id`, `clip_bytes`, `clip_uri` and `windows`, an array of the
            windows to be captioned with their `attempt`.
        settings: model, prompts and how the model answers.

    Returns:
        The columns of `captions` without those that a commit fills in, one row for each window.
    """
    return rows_of(answer_windows(df, settings), settings)


def answer_windows(df: DataFrame, settings: Settings) -> DataFrame:
    """Windows with their answers; see `jobs.contract.answer_each_window`."""
    return answer_each_window(df, caption_udf(settings), FIELDS)


def rows_of(answered: DataFrame, settings: Settings) -> DataFrame:
    """The rows for the table out of windows with their answers; see `jobs.contract.answer_each_window`."""
    model = caption_model(settings)
    return answered.select(
        "clip_no",
        "clip_id",
        *[F.col(f"window.{name}").alias(name) for name in _WINDOW_COLUMNS],
        *[F.col(f"answer.{name}").alias(name) for name in _ANSWER_COLUMNS],
        F.lit(caption_config(settings, model).config_id).alias("caption_config_id"),
        *_identity_columns(settings, model),
    )


def caption_udf(settings: Settings) -> UserDefinedFunction:
    """The UDF `caption_windows` under these settings."""
    return caption_windows_udf(
        caption_engine(settings),
        caption_plan(settings),
        min_in_flight=settings.caption_generation.caption_batch_size,
    )


def caption_plan(settings: Settings) -> CaptionPlan:
    """What the workers need to know, as plain values."""
    generation = settings.caption_generation
    return CaptionPlan(
        variant=model_variant(generation.model_variant),
        prompt=caption_prompt(settings),
        stage2_prompt=stage2_prompt(settings),
        generation=answering(settings, max_output_tokens=generation.max_output_tokens),
        limits=media_limits(settings),
        full_size=generation.model_does_preprocess,
        max_pending=2 * max(settings.engine.max_in_flight, generation.caption_batch_size),
        verbose=generation.verbose,
    )


def stage(context: JobContext) -> Stage:
    """The stage that captions the windows which have no caption under this config."""
    settings = context.settings
    config = caption_config(settings, caption_model(settings))
    prep_id = prep_config(settings).config_id
    mine = (F.col("caption_config_id") == config.config_id) & (F.col("prep_config_id") == prep_id)
    failed = f"caption_status = 'error' AND caption_config_id = '{config.config_id}'"

    def pending(lake: Lake, where: str) -> DataFrame:
        return pending_windows(context, lake, where, table=CAPTIONS, config=mine, failed=failed)

    def rows(lake: Lake, chunk: Chunk, windows: DataFrame) -> DataFrame:
        clips = with_clips(lake, chunk, one_row_per_clip(windows), partitions=parallelism(lake.spark))
        return answer_windows(clips, settings)

    def provide(lake: Lake) -> None:
        provide_weights(lake.spark, caption_engine(settings))

    return Stage(
        CAPTIONS,
        "caption_config_id",
        config,
        "windows",
        pending,
        rows,
        provide,
        select=lambda answered: rows_of(answered, settings),
        engine="answer.engine",
    )


def _identity_columns(settings: Settings, model: ModelIdentity) -> list:  # type: ignore[type-arg]
    preparation = settings.caption_preparation
    values = {
        "model_variant": settings.caption_generation.model_variant,
        "model_id": model.model_id,
        "model_revision": model.revision,
        "prompt_variant": "custom" if preparation.prompt_text else preparation.prompt_variant,
        "prompt_text": caption_prompt(settings),
    }
    return [F.lit(value).alias(name) for name, value in values.items()]


def _check(settings: Settings) -> None:
    caption_engine(settings)


STAGE = StageKind("captions", stage, _check)


def kinds(settings: Settings) -> list[StageKind]:
    """The stages of the command."""
    return [STAGE]


def run(spark: SparkSession, settings: Settings) -> Report:
    """Captions the windows of the lake that have no caption yet."""
    return run_stages(spark, settings, command="caption", kinds=kinds(settings))


def main(argv: list[str] | None = None) -> int:
    """The command `captionlake caption`; returns the exit code."""
    from jobs.cli import main as cli

    return cli(["caption", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
