"""Columns that several tables share."""

from pyspark.sql.types import StructField, TimestampType

from schemas.table import DOUBLE, INT, LONG, STRING, column

WINDOW_ID = column("window_id", STRING, "UUIDv5 of clip, start_frame and end_frame", required=True)
PREP_CONFIG_ID = column("prep_config_id", STRING, "settings that cut the windows; see configs", required=True)
CLIP_ID = column("clip_id", STRING, "the clip that the row belongs to; see clips", required=True)
CLIP_NO = column("clip_no", LONG, "number of the clip's content in its table", required=True)
WINDOW_INDEX = column("window_index", INT, "place of the window in its clip, from 0; null: the clip has none")
ATTEMPT = column("attempt", INT, "1 for the first try; retry appends the next", required=True)


def frame_range() -> list[StructField]:
    """First and last frame of a window, and when they are shown."""
    return [
        column("start_frame", INT, "first frame of the window, counted from 0 in the clip"),
        column("end_frame", INT, "last frame of the window, inclusive"),
        column("start_s", DOUBLE, "presentation time of start_frame in seconds"),
        column("end_s", DOUBLE, "presentation time of end_frame in seconds"),
    ]


def provenance() -> list[StructField]:
    """Which run wrote the row, and in which order commits came."""
    return [
        column("run_id", STRING, "the run that wrote the row; see runs", required=True),
        column("commit_seq", LONG, "microseconds since 1970 at the commit, made to grow", required=True),
        column("created_at", TimestampType(), "when the row was made, UTC", required=True),
    ]


def answer(text: StructField, status: StructField, error: StructField) -> list[StructField]:
    """What a model answered, and what it cost."""
    return [
        text,
        status,
        error,
        column("finish_reason", STRING, "why the model stopped: stop or length"),
        column("prompt_tokens", INT, "tokens of the prompt, frames included"),
        column("output_tokens", INT, "tokens of the answer"),
        column("latency_s", DOUBLE, "seconds from request to answer"),
    ]


def model() -> list[StructField]:
    """Which model answered which prompt."""
    return [
        column("model_variant", STRING, "model family, e.g. qwen", required=True),
        column("model_id", STRING, "repository id of the weights", required=True),
        column("model_revision", STRING, "revision of the weights", required=True),
        column("prompt_variant", STRING, "built-in prompt, or custom", required=True),
        column("prompt_text", STRING, "the prompt in full", required=True),
    ]
