"""Job `enhance`: the text model over the newest captions, into the table `enhancements`."""

import sys

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.udf import UserDefinedFunction

from conf.identity import enhance_config, prep_config
from conf.prompts import enhancement_prompt
from conf.settings import Settings
from jobs.chunks import Chunk
from jobs.lake import Lake
from jobs.models import answering, text_engine, text_model
from jobs.newest import newest_captions
from jobs.pending import current_windows
from jobs.pipeline import run_stages
from jobs.report import Report
from jobs.session import parallelism
from jobs.stage import JobContext, Stage, StageKind
from jobs.weights import provide_weights
from schemas.captions import CAPTIONS
from schemas.enhancements import ENHANCEMENTS
from udfs.caption_udf import ENGINE
from udfs.enhance_udf import ANSWER, enhance_caption_udf
from udfs.enhancing import EnhancePlan

_ANSWER_COLUMNS = [name for name in ANSWER.fieldNames() if name not in ("window_id", ENGINE.name)]
_CAPTION_KEY = ["window_id", "prep_config_id", "caption_config_id", "caption_attempt"]


def build(df: DataFrame, settings: Settings) -> DataFrame:
    """Enhances captions.

    Args:
        df: one row a caption: the caption's key (its attempt as `caption_attempt`), `clip_no`, `clip_id`,
            `window_index`, `caption` (null: there is none) and `attempt`.
        settings: model, prompt and how the model answers.

    Returns:
        The columns of `enhancements` without those that a commit fills in, one row for each caption.
    """
    return rows_of(answer_captions(df, settings), settings)


def answer_captions(df: DataFrame, settings: Settings) -> DataFrame:
    """Captions with the struct `answer`. One that is not that of its caption stops the job."""
    answered = df.withColumn("answer", enhance_udf(settings)("window_id", "caption"))
    message = F.concat(
        F.lit("row contract broken: window_id="), "window_id", F.lit(" got another window's answer")
    )
    return answered.withColumn(
        "answer",
        F.when(F.col("answer.window_id") == F.col("window_id"), F.col("answer")).otherwise(
            F.raise_error(message)
        ),
    )


def rows_of(answered: DataFrame, settings: Settings) -> DataFrame:
    """The rows for the table out of captions with their answers."""
    enhancement, model = settings.caption_enhancement, text_model(settings)
    identity = {
        "enhance_config_id": enhance_config(settings, model).config_id,
        "model_variant": enhancement.model_variant,
        "model_id": model.model_id,
        "model_revision": model.revision,
        "prompt_variant": "custom" if enhancement.prompt_text else enhancement.prompt_variant,
        "prompt_text": enhancement_prompt(settings),
    }
    return answered.select(
        *_CAPTION_KEY,
        "attempt",
        "clip_id",
        "clip_no",
        "window_index",
        *[F.col(f"answer.{name}").alias(name) for name in _ANSWER_COLUMNS],
        *[F.lit(value).alias(name) for name, value in identity.items()],
    )


def enhance_udf(settings: Settings) -> UserDefinedFunction:
    """The UDF `enhance_caption` under these settings."""
    return enhance_caption_udf(
        text_engine(settings),
        enhance_plan(settings),
        min_in_flight=settings.caption_enhancement.model_batch_size,
    )


def enhance_plan(settings: Settings) -> EnhancePlan:
    """What the workers need to know, as plain values."""
    enhancement = settings.caption_enhancement
    return EnhancePlan(
        prompt=enhancement_prompt(settings),
        generation=answering(settings, max_output_tokens=enhancement.max_output_tokens),
        max_pending=2 * max(settings.engine.max_in_flight, enhancement.model_batch_size),
        verbose=enhancement.verbose,
    )


def stage(context: JobContext) -> Stage:
    """The stage that enhances the newest captions which have no enhancement under this config."""
    settings = context.settings
    config = enhance_config(settings, text_model(settings))
    prep_id = prep_config(settings).config_id

    def pending(lake: Lake, where: str) -> DataFrame:
        captions = lake.read(CAPTIONS).where(where).where(F.col("prep_config_id") == prep_id)
        captions = newest_captions(captions).withColumnRenamed("attempt", "caption_attempt")
        captions = captions.select(*_CAPTION_KEY, "clip_no", "clip_id", "window_index", "caption")
        current = current_windows(context, lake, where).select("window_id", "prep_config_id")
        captions = captions.join(current, ["window_id", "prep_config_id"], "left_semi")
        held = lake.read(ENHANCEMENTS).where(where).where(F.col("enhance_config_id") == config.config_id)
        first = captions.join(held.select(*_CAPTION_KEY), _CAPTION_KEY, "left_anti").withColumn(
            "attempt", F.lit(1)
        )
        if context.retry is None:
            return first
        chosen = context.retry.where(where)
        failed = chosen.where("enhanced_status = 'error'").where(
            F.col("enhance_config_id") == config.config_id
        )
        again = held.join(failed.select(*_CAPTION_KEY), _CAPTION_KEY, "left_semi")
        last = again.groupBy(*_CAPTION_KEY).agg((F.max("attempt") + 1).alias("attempt"))
        clips = chosen.select("clip_no").distinct()
        return first.join(clips, "clip_no", "left_semi").unionByName(captions.join(last, _CAPTION_KEY))

    def rows(lake: Lake, chunk: Chunk, captions: DataFrame) -> DataFrame:
        spread = captions.repartition(parallelism(lake.spark), "window_id")
        return answer_captions(spread, settings)

    def provide(lake: Lake) -> None:
        provide_weights(lake.spark, text_engine(settings))

    return Stage(
        ENHANCEMENTS,
        "enhance_config_id",
        config,
        "captions",
        pending,
        rows,
        provide,
        select=lambda answered: rows_of(answered, settings),
        engine="answer.engine",
    )


def _check(settings: Settings) -> None:
    text_engine(settings)


STAGE = StageKind("enhancements", stage, _check)


def kinds(settings: Settings) -> list[StageKind]:
    """The stages of the command."""
    return [STAGE]


def run(spark: SparkSession, settings: Settings) -> Report:
    """Enhances the newest captions of the lake that are not enhanced yet."""
    return run_stages(spark, settings, command="enhance", kinds=kinds(settings))


def main(argv: list[str] | None = None) -> int:
    """The command `captionlake enhance`; returns the exit code."""
    from jobs.cli import main as cli

    return cli(["enhance", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
