"""The pandas UDF `caption_windows`: a clip and its windows in, their captions out."""

import logging
from collections.abc import Iterator
from typing import Any

import pandas as pd
from pyspark.sql.types import ArrayType, DoubleType, IntegerType, StringType, StructField, StructType
from pyspark.sql.udf import UserDefinedFunction

from conf.engine import EngineSettings
from udfs.captioning import CaptionPlan, ClipWork, WindowWork, caption_clips
from udfs.engine.client import EngineClient
from udfs.engine.slot import current_slot
from udfs.once import once_a_row
from udfs.worker_log import log_to_stderr

FIELDS = ("window_id", "frame_indices", "window_error", "frame_times_s")
"""Fields of a window that the UDF needs."""

ENGINE = StructField(
    "engine",
    StructType(
        [
            StructField("engine_id", StringType()),
            StructField("at_s", DoubleType()),
            StructField("busy_s", DoubleType()),
        ]
    ),
)
"""Field of an answer: an `EngineReading`; null where no engine was asked, or its meter is unknown."""

ANSWER = StructType(
    [
        StructField("clip_id", StringType()),
        StructField("window_id", StringType()),
        StructField("caption", StringType()),
        StructField("stage1_caption", StringType()),
        StructField("caption_status", StringType()),
        StructField("caption_error", StringType()),
        StructField("finish_reason", StringType()),
        StructField("prompt_tokens", IntegerType()),
        StructField("output_tokens", IntegerType()),
        StructField("latency_s", DoubleType()),
        ENGINE,
    ]
)
"""One element of the UDF's answer; it echoes the ids so that the job can check the order."""


def caption_windows_udf(
    engine: EngineSettings, plan: CaptionPlan, *, min_in_flight: int
) -> UserDefinedFunction:
    """Makes the UDF.

    Args:
        engine: which engine answers; loaded once for the life of the executor.
        plan: prompts, frame size and limits.
        min_in_flight: requests that a task may always have in flight.

    Returns:
        A UDF of `(clip_id string, clip_bytes binary, clip_uri string, windows array<struct<window_id
        string, frame_indices array<int>, window_error string, frame_times_s array<double>>>)` to an array
        of `ANSWER`, one for each window, in order. The times may be missing; with them less is decoded. It
        is nondeterministic to the optimizer, so that it is evaluated once a row.
    """
    engine_values = engine.model_dump()

    def caption_windows(
        batches: Iterator[tuple[pd.Series, pd.Series, pd.Series, pd.Series]],
    ) -> Iterator[pd.Series]:
        log_to_stderr(logging.INFO)
        with EngineClient(EngineSettings(**engine_values), current_slot()) as client:
            works = ([_clip_work(*row) for row in zip(*batch, strict=True)] for batch in batches)
            for answers in caption_clips(works, lambda request: client.submit(request, min_in_flight), plan):
                yield pd.Series(answers, dtype=object)

    return once_a_row(caption_windows, ArrayType(ANSWER))


def _clip_work(clip_id: str, clip_bytes: bytes | None, clip_uri: str | None, windows: Any) -> ClipWork:
    return ClipWork(clip_id, clip_bytes, clip_uri, [window_work(window) for window in windows])


def window_work(window: Any) -> WindowWork:
    """A window as the UDF gets it from Spark, as the caption task wants it."""
    indices = window["frame_indices"]
    times_s = window.get("frame_times_s")
    return WindowWork(
        window["window_id"],
        None if indices is None else [int(i) for i in indices],
        window["window_error"],
        None if times_s is None else [float(t) for t in times_s],
    )
