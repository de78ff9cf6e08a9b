"""What is checked before any work starts, so that no GPU waits for a mistake."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.errors import SchemaError
from jobs.lake import Lake
from schemas.clips import CLIPS


def check_clip_columns(clips: DataFrame) -> None:
    """Checks that somebody's table of clips has the columns that nothing else can stand for.

    Raises:
        SchemaError: there is no id, or neither bytes nor a URI.
    """
    if "clip_id" not in clips.columns or not {"clip_bytes", "clip_uri"} & set(clips.columns):
        raise SchemaError(
            f"table of clips: it needs clip_id and one of clip_bytes, clip_uri; it has {clips.columns}"
        )


def check_clips(lake: Lake) -> int:
    """Checks the key of `clips`; returns the number of clips.

    Raises:
        SchemaError: an id or a number is null, or stands twice.
    """
    clips, keys = lake.read(CLIPS), ("clip_id", "clip_no")
    # One query where all is well; names are looked up only for the message.
    found = clips.agg(
        F.count("*").alias("rows"),
        *[F.count(key).alias(f"{key}_given") for key in keys],
        *[F.count_distinct(key).alias(f"{key}_distinct") for key in keys],
    ).collect()[0]
    if any(found[f"{key}_given"] < found["rows"] for key in keys):
        nameless = clips.where("clip_id IS NULL OR clip_no IS NULL").count()
        raise SchemaError(f"table clips: clip_id or clip_no is null in {nameless} rows; give every clip both")
    for key in keys:
        if found[f"{key}_distinct"] < found["rows"]:
            twice = clips.groupBy(key).count().where(F.col("count") > 1).select(key).limit(3).collect()
            names = ", ".join(str(row[0]) for row in twice)
            raise SchemaError(
                f"table clips: {key} {names} stands in several rows; every {key} may stand once"
            )
    return int(found["rows"])
