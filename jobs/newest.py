"""Which of several captions, enhancements or previews of a window is the newest."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F


def newest_captions(captions: DataFrame) -> DataFrame:
    """One caption for each window: that of the newest commit, of its highest attempt.

    The commit decides before the attempt, because attempts count within one config: a first caption
    under a new prompt is newer than a third attempt under the old one.
    """
    window = Window.partitionBy("window_id", "prep_config_id")
    order = window.orderBy(F.desc("commit_seq"), F.desc("attempt"), F.desc("caption_config_id"))
    return captions.withColumn("rank", F.row_number().over(order)).where("rank = 1").drop("rank")
