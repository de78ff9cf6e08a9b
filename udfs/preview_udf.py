"""The pandas UDF `preview_webp`: a clip and its windows in, their animated WebPs out."""

import logging
from collections.abc import Iterator
from typing import Any

import pandas as pd
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
)
from pyspark.sql.udf import UserDefinedFunction

from udfs.once import once_a_row
from udfs.preview import PreviewParams
from udfs.previewing import PreviewWork, preview_clip
from udfs.structs import with_integers
from udfs.video import Limits
from udfs.worker_log import log_to_stderr

FIELDS = (
    *("window_id", "start_frame", "end_frame", "start_s", "end_s"),
    *("frame_rate", "height", "window_error"),
)
"""Fields of a window that the UDF needs."""

ANSWER = StructType(
    [
        StructField("clip_id", StringType()),
        StructField("window_id", StringType()),
        StructField("webp", BinaryType()),
        StructField("width", IntegerType()),
        StructField("height", IntegerType()),
        StructField("num_frames", IntegerType()),
        StructField("num_bytes", LongType()),
        StructField("preview_status", StringType()),
        StructField("preview_error", StringType()),
    ]
)
"""One element of the UDF's answer; it echoes the ids so that the job can check the order."""


def preview_webp_udf(params: PreviewParams, limits: Limits) -> UserDefinedFunction:
    """Makes the UDF.

    Args:
        params: how previews look.
        limits: what decoding a clip may cost.

    Returns:
        A UDF of `(clip_id string, clip_bytes binary, clip_uri string, windows array<struct<...>>)`, the
        struct with `FIELDS`, to an array of `ANSWER`, one for each window, in order. Fields but for
        `window_id`, `start_frame` and `end_frame` may be missing; with the times less is decoded, and with
        frame rate and height there are warnings. It is nondeterministic to the optimizer, so that it is
        evaluated once a row.
    """

    def preview_webp(
        batches: Iterator[tuple[pd.Series, pd.Series, pd.Series, pd.Series]],
    ) -> Iterator[pd.Series]:
        log_to_stderr(logging.INFO)
        for batch in batches:
            answers = [
                preview_clip(clip_id, clip_bytes, clip_uri, _works(windows), params=params, limits=limits)
                for clip_id, clip_bytes, clip_uri, windows in zip(*batch, strict=True)
            ]
            yield pd.Series(answers, dtype=object)

    return once_a_row(preview_webp, ArrayType(ANSWER))


def _works(windows: Any) -> list[PreviewWork]:
    return [preview_work(window) for window in windows]


def preview_work(window: Any) -> PreviewWork:
    """A window as the UDF gets it from Spark, as the preview task wants it."""
    whole = with_integers(window, ("start_frame", "end_frame", "height"))
    values: dict[str, Any] = {name: whole.get(name) for name in FIELDS}
    return PreviewWork(**values)
