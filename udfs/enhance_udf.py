"""The pandas UDF `enhance_caption`: a caption in, an enhanced one out."""

import logging
from collections.abc import Iterator

import pandas as pd
from pyspark.sql.types import DoubleType, IntegerType, StringType, StructField, StructType
from pyspark.sql.udf import UserDefinedFunction

from conf.engine import EngineSettings
from udfs.caption_udf import ENGINE
from udfs.engine.client import EngineClient
from udfs.engine.slot import current_slot
from udfs.enhancing import EnhancePlan, enhance_captions
from udfs.once import once_a_row
from udfs.worker_log import log_to_stderr

ANSWER = StructType(
    [
        StructField("window_id", StringType()),
        StructField("enhanced_caption", StringType()),
        StructField("enhanced_status", StringType()),
        StructField("enhanced_error", StringType()),
        StructField("finish_reason", StringType()),
        StructField("prompt_tokens", IntegerType()),
        StructField("output_tokens", IntegerType()),
        StructField("latency_s", DoubleType()),
        ENGINE,
    ]
)


def enhance_caption_udf(
    engine: EngineSettings, plan: EnhancePlan, *, min_in_flight: int
) -> UserDefinedFunction:
    """Makes the UDF.

    Args:
        engine: which engine answers; loaded once for the life of the executor.
        plan: the prompt and how the model answers.
        min_in_flight: requests that a task may always have in flight.

    Returns:
        A UDF of `(window_id string, caption string)` to `ANSWER`, which echoes the id. It is
        nondeterministic to the optimizer, so that it is evaluated once a row.
    """
    engine_values = engine.model_dump()
    names = ANSWER.fieldNames()

    def enhance_caption(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.DataFrame]:
        log_to_stderr(logging.INFO)
        with EngineClient(EngineSettings(**engine_values), current_slot()) as client:
            pairs = (list(zip(*batch, strict=True)) for batch in batches)
            for answers in enhance_captions(
                pairs, lambda request: client.submit(request, min_in_flight), plan
            ):
                # Objects, so that a missing integer stays missing and does not become NaN.
                cells = [[answer.get(name) for name in names] for answer in answers]
                yield pd.DataFrame(cells, columns=names, dtype=object)

    return once_a_row(enhance_caption, ANSWER)
