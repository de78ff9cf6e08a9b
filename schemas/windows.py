"""Table `windows`: one row a window, or one with the reason why a clip has none."""

from pyspark.sql.types import ArrayType, StructType

from schemas.common import (
    ATTEMPT,
    CLIP_ID,
    CLIP_NO,
    PREP_CONFIG_ID,
    WINDOW_ID,
    WINDOW_INDEX,
    frame_range,
    provenance,
)
from schemas.table import DOUBLE, INT, STRING, Table, column

WINDOWS = Table(
    name="windows",
    schema=StructType(
        [
            WINDOW_ID,
            PREP_CONFIG_ID,
            CLIP_ID,
            CLIP_NO,
            WINDOW_INDEX,
            *frame_range(),
            column("num_frames", INT, "frames of the window"),
            column("frame_rate", DOUBLE, "average frames a second of the clip"),
            column("width", INT, "width as displayed, in pixels"),
            column("height", INT, "height as displayed, in pixels"),
            column("video_codec", STRING, "codec of the video stream, e.g. h264"),
            column("frame_indices", ArrayType(INT, False), "sampled frames, counted from 0 in the clip"),
            column(
                "frame_times_s",
                ArrayType(DOUBLE, False),
                "presentation times of the sampled frames in s",
            ),
            column("window_status", STRING, "success, partial, error or skipped", required=True),
            column("window_error", STRING, "why there is no window, or where the clip breaks"),
            ATTEMPT,
            *provenance(),
        ]
    ),
    key=("window_id", "prep_config_id"),
    stats=("clip_no", "clip_id", "window_id", "prep_config_id", "window_index", "attempt", "commit_seq"),
    status="window_status",
)
