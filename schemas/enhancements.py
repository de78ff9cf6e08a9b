"""Table `enhancements`: one row for each caption, enhancement config and attempt."""

from pyspark.sql.types import StructType

from schemas.captions import CAPTION_CONFIG_ID
from schemas.common import (
    ATTEMPT,
    CLIP_ID,
    CLIP_NO,
    PREP_CONFIG_ID,
    WINDOW_ID,
    WINDOW_INDEX,
    answer,
    model,
    provenance,
)
from schemas.table import INT, STRING, Table, column

ENHANCEMENTS = Table(
    name="enhancements",
    schema=StructType(
        [
            WINDOW_ID,
            PREP_CONFIG_ID,
            CAPTION_CONFIG_ID,
            column("caption_attempt", INT, "attempt of the caption that was enhanced", required=True),
            column(
                "enhance_config_id", STRING, "settings that made the enhancement; see configs", required=True
            ),
            ATTEMPT,
            CLIP_ID,
            CLIP_NO,
            WINDOW_INDEX,
            *model(),
            *answer(
                column("enhanced_caption", STRING, "the caption as the text model rewrote it"),
                column("enhanced_status", STRING, "success, truncated, error or skipped", required=True),
                column("enhanced_error", STRING, "why there is no enhanced caption"),
            ),
            *provenance(),
        ]
    ),
    key=(
        "window_id",
        "prep_config_id",
        "caption_config_id",
        "caption_attempt",
        "enhance_config_id",
        "attempt",
    ),
    stats=(
        "clip_no",
        "clip_id",
        "window_id",
        "prep_config_id",
        "caption_config_id",
        "caption_attempt",
        "enhance_config_id",
        "attempt",
        "commit_seq",
    ),
    status="enhanced_status",
)
