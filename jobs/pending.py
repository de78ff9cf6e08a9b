"""What is left to do for a config: windows without a row, and rows that are to be tried again."""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.identity import prep_config
from jobs.lake import Lake
from jobs.stage import JobContext
from schemas.clips import CLIPS
from schemas.table import Table
from schemas.windows import WINDOWS


def current_windows(context: JobContext, lake: Lake, where: str) -> DataFrame:
    """The windows of the clips as they are now, under the run's window rule, on a range of clips."""
    prep_id = prep_config(context.settings).config_id
    clips = lake.read(CLIPS).where(where).select("clip_no")
    windows = lake.read(WINDOWS).where(where).where(F.col("prep_config_id") == prep_id)
    newest = F.max("attempt").over(Window.partitionBy("clip_no"))
    last = windows.withColumn("newest", newest).where("attempt = newest").drop("newest")
    return last.join(clips, "clip_no", "left_semi")


def pending_windows(
    context: JobContext, lake: Lake, where: str, *, table: Table, config: Column, failed: str
) -> DataFrame:
    """The windows that need a row in `table`.

    Args:
        context: the run.
        lake: the tables.
        where: the range of clips.
        table: the table to be filled; its key starts with `window_id`, `prep_config_id`.
        config: condition on `table`: rows of this config.
        failed: condition on `window_captions`: rows whose outcome in `table` is an error of this config.

    Returns:
        Rows of `windows` with the `attempt` that comes next.
    """
    keys = ["window_id", "prep_config_id"]
    windows = current_windows(context, lake, where).drop("attempt", "run_id", "commit_seq", "created_at")
    held = lake.read(table).where(where).where(config)
    first = windows.join(held.select(*keys), keys, "left_anti").withColumn("attempt", F.lit(1))
    if context.retry is None:
        return first
    chosen = context.retry.where(where)
    again = chosen.where(failed).select(*keys)
    last = held.join(again, keys, "left_semi").groupBy(*keys).agg((F.max("attempt") + 1).alias("attempt"))
    clips = chosen.select("clip_no").distinct()
    return first.join(clips, "clip_no", "left_semi").unionByName(windows.join(last, keys))
