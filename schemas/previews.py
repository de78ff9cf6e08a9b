"""Table `previews`: one animated WebP for each window, preview config and attempt."""

from pyspark.sql.types import BinaryType, StructType

from schemas.common import ATTEMPT, CLIP_ID, CLIP_NO, PREP_CONFIG_ID, WINDOW_ID, WINDOW_INDEX, provenance
from schemas.table import INT, LONG, STRING, Table, column

PREVIEWS = Table(
    name="previews",
    schema=StructType(
        [
            WINDOW_ID,
            PREP_CONFIG_ID,
            column("preview_config_id", STRING, "settings that made the preview; see configs", required=True),
            ATTEMPT,
            CLIP_ID,
            CLIP_NO,
            WINDOW_INDEX,
            column("webp", BinaryType(), "the animated WebP"),
            column("width", INT, "width of the preview in pixels"),
            column("height", INT, "height of the preview in pixels"),
            column("num_frames", INT, "frames of the preview"),
            column("num_bytes", LONG, "size of the preview in bytes"),
            column("preview_status", STRING, "success, error or skipped", required=True),
            column("preview_error", STRING, "why there is no preview: ffmpeg's command and what it said"),
            *provenance(),
        ]
    ),
    key=("window_id", "prep_config_id", "preview_config_id", "attempt"),
    stats=("clip_no", "clip_id", "window_id", "prep_config_id", "preview_config_id", "attempt", "commit_seq"),
    has_blobs=True,
    status="preview_status",
)
