"""Table `window_media`: the mp4 of each window, when it is asked for."""

from pyspark.sql.types import BinaryType, StructType

from schemas.common import ATTEMPT, CLIP_ID, CLIP_NO, PREP_CONFIG_ID, WINDOW_ID, WINDOW_INDEX, provenance
from schemas.table import INT, LONG, STRING, Table, column

WINDOW_MEDIA = Table(
    name="window_media",
    schema=StructType(
        [
            WINDOW_ID,
            PREP_CONFIG_ID,
            ATTEMPT,
            CLIP_ID,
            CLIP_NO,
            WINDOW_INDEX,
            column("mp4_bytes", BinaryType(), "the window as an mp4 of its own: H.264, without sound"),
            column("width", INT, "width of the mp4 in pixels"),
            column("height", INT, "height of the mp4 in pixels"),
            column("num_frames", INT, "frames of the mp4"),
            column("num_bytes", LONG, "size of the mp4 in bytes"),
            column("media_status", STRING, "success, error or skipped", required=True),
            column("media_error", STRING, "why there is no mp4"),
            *provenance(),
        ]
    ),
    key=("window_id", "prep_config_id", "attempt"),
    stats=("clip_no", "clip_id", "window_id", "prep_config_id", "attempt", "commit_seq"),
    has_blobs=True,
    status="media_status",
)
