"""Joining a UDF's answers to their windows, with the row contract checked on every row."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.udf import UserDefinedFunction

MAX_WINDOWS_PER_ROW = 64
"""Longer clips become several rows, so that no row of answers grows without bound."""


def one_row_per_clip(windows: DataFrame) -> DataFrame:
    """Gathers windows into rows of one clip each.

    Args:
        windows: rows of `windows` with `attempt`.

    Returns:
        Rows with `clip_no`, `clip_id` and `windows`, an array of at most `MAX_WINDOWS_PER_ROW`.
    """
    columns = [name for name in windows.columns if name not in ("clip_no", "clip_id")]
    numbered = windows.withColumn(
        "slice", F.floor(F.coalesce("window_index", F.lit(0)) / MAX_WINDOWS_PER_ROW)
    )
    gathered = numbered.groupBy("clip_no", "clip_id", "slice").agg(
        F.sort_array(
            F.collect_list(F.struct("window_index", *[c for c in columns if c != "window_index"]))
        ).alias("windows")
    )
    return gathered.drop("slice")


def answer_each_window(df: DataFrame, udf: UserDefinedFunction, fields: Sequence[str]) -> DataFrame:
    """Applies a UDF to clips and gives every window its own answer.

    Args:
        df: rows of `one_row_per_clip` with `clip_bytes` and `clip_uri`.
        udf: takes `clip_id`, `clip_bytes`, `clip_uri` and the windows; answers with an array of structs
            that echo `clip_id` and `window_id`.
        fields: fields of a window that the UDF needs.

    Returns:
        One row for each window: `clip_no`, `clip_id`, the struct `window` and the struct `answer`. A row
        whose answers are not those of its windows stops the job.
    """
    needed = F.transform("windows", lambda window: F.struct(*[window[name].alias(name) for name in fields]))
    answered = df.select(
        "clip_no", "clip_id", "windows", udf("clip_id", "clip_bytes", "clip_uri", needed).alias("answers")
    )
    checked = answered.withColumn("answers", _checked(F.col("windows"), F.col("answers")))
    pairs = F.explode_outer(F.arrays_zip(F.col("windows").alias("window"), F.col("answers").alias("answer")))
    return checked.select("clip_no", "clip_id", pairs.alias("pair")).select(
        "clip_no", "clip_id", F.col("pair.window").alias("window"), F.col("pair.answer").alias("answer")
    )


def _checked(windows: Column, answers: Column) -> Column:
    """The answers, or an error that names the clip where they are not those of its windows."""
    matches = F.size(windows) == F.size(answers)
    same_windows = F.transform(windows, lambda window: window["window_id"]) == F.transform(
        answers, lambda answer: answer["window_id"]
    )
    same_clip = F.forall(answers, lambda answer: answer["clip_id"] == F.col("clip_id"))
    message = F.concat(
        F.lit("row contract broken: clip_id="),
        "clip_id",
        F.lit(" got answers that are not those of its windows"),
    )
    return F.when(matches & same_windows & same_clip, answers).otherwise(F.raise_error(message))
