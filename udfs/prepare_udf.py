"""The pandas UDF `caption_and_preview`: a clip and its windows in, their captions and WebPs out."""

import logging
from collections.abc import Iterator
from typing import Any

import pandas as pd
from pyspark.sql.types import ArrayType, StringType, StructField, StructType
from pyspark.sql.udf import UserDefinedFunction

from conf.engine import EngineSettings
from udfs import caption_udf, preview_udf
from udfs.captioning import CaptionPlan, ClipWork
from udfs.engine.client import EngineClient
from udfs.engine.slot import current_slot
from udfs.once import once_a_row
from udfs.preparing import PreparedWork, caption_and_preview_clips
from udfs.preview import PreviewParams
from udfs.worker_log import log_to_stderr

FIELDS = tuple(dict.fromkeys(caption_udf.FIELDS + preview_udf.FIELDS))
"""Fields of a window that the UDF needs."""

ANSWER = StructType(
    [
        StructField("clip_id", StringType()),
        StructField("window_id", StringType()),
        StructField("caption", caption_udf.ANSWER),
        StructField("preview", preview_udf.ANSWER),
    ]
)
"""One element of the UDF's answer; it echoes the ids so that the job can check the order."""


def caption_and_preview_udf(
    engine: EngineSettings, plan: CaptionPlan, params: PreviewParams, *, min_in_flight: int
) -> UserDefinedFunction:
    """Makes the UDF.

    Args:
        engine: which engine answers; loaded once for the life of the executor.
        plan: prompts, frame size and limits.
        params: how previews look.
        min_in_flight: requests that a task may always have in flight.

    Returns:
        A UDF of `(clip_id string, clip_bytes binary, clip_uri string, windows array<struct<...>>)`, the
        struct with `FIELDS`, to an array of `ANSWER`, one for each window, in order. It is nondeterministic
        to the optimizer, so that it is evaluated once a row.
    """
    engine_values = engine.model_dump()

    def caption_and_preview(
        batches: Iterator[tuple[pd.Series, pd.Series, pd.Series, pd.Series]],
    ) -> Iterator[pd.Series]:
        log_to_stderr(logging.INFO)
        with EngineClient(EngineSettings(**engine_values), current_slot()) as client:
            works = ([_work(*row) for row in zip(*batch, strict=True)] for batch in batches)
            for answers in caption_and_preview_clips(
                works, lambda request: client.submit(request, min_in_flight), plan, params
            ):
                yield pd.Series(answers, dtype=object)

    return once_a_row(caption_and_preview, ArrayType(ANSWER))


def _work(clip_id: str, clip_bytes: bytes | None, clip_uri: str | None, windows: Any) -> PreparedWork:
    captions = [caption_udf.window_work(window) for window in windows]
    previews = [preview_udf.preview_work(window) for window in windows]
    return PreparedWork(ClipWork(clip_id, clip_bytes, clip_uri, captions), previews)
