"""Table `clips`: the input, one row a clip."""

from pyspark.sql.types import BinaryType, StructType

from schemas.common import CLIP_NO
from schemas.table import DOUBLE, STRING, Table, column

CLIPS = Table(
    name="clips",
    schema=StructType(
        [
            column("clip_id", STRING, "UUIDv5 of the canonical URI and the span", required=True),
            CLIP_NO,
            column("source_video", STRING, "the video that the clip was cut from"),
            column("span_start_s", DOUBLE, "where the clip begins in its source video, in seconds"),
            column("span_end_s", DOUBLE, "where the clip ends in its source video, in seconds"),
            column("clip_bytes", BinaryType(), "the clip itself, when stored by value"),
            column("clip_uri", STRING, "where the clip lies, when stored by reference"),
            column("content_id", STRING, "size with etag or hash; another one is new work"),
        ]
    ),
    key=("clip_id",),
    stats=("clip_no", "clip_id"),
    has_blobs=True,
)
