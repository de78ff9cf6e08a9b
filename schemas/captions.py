"""Table `captions`: one row for each window, caption config and attempt."""

from pyspark.sql.types import StructType

from schemas.common import (
    ATTEMPT,
    CLIP_ID,
    CLIP_NO,
    PREP_CONFIG_ID,
    WINDOW_ID,
    WINDOW_INDEX,
    answer,
    frame_range,
    model,
    provenance,
)
from schemas.table import STRING, Table, column

CAPTION_CONFIG_ID = column(
    "caption_config_id", STRING, "settings that made the caption; see configs", required=True
)

CAPTIONS = Table(
    name="captions",
    schema=StructType(
        [
            WINDOW_ID,
            PREP_CONFIG_ID,
            CAPTION_CONFIG_ID,
            ATTEMPT,
            CLIP_ID,
            CLIP_NO,
            WINDOW_INDEX,
            *frame_range(),
            *model(),
            *answer(
                column("caption", STRING, "what the model says of the window"),
                column("caption_status", STRING, "success, truncated, error or skipped", required=True),
                column("caption_error", STRING, "why there is no caption, or no second pass"),
            ),
            column("stage1_caption", STRING, "the first pass's caption, when a second pass ran"),
            *provenance(),
        ]
    ),
    key=("window_id", "prep_config_id", "caption_config_id", "attempt"),
    stats=("clip_no", "clip_id", "window_id", "prep_config_id", "caption_config_id", "attempt", "commit_seq"),
    status="caption_status",
)
