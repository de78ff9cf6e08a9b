"""Which precision takes effect: FP8 needs a card that computes with it."""

import logging
import subprocess
from collections.abc import Iterator

import pandas as pd
from pyspark.sql import SparkSession

from conf.settings import Settings
from jobs.session import parallelism

log = logging.getLogger(__name__)

FP8_CAPABILITY = (8, 9)
"""Least compute capability of a card whose tensor cores take FP8."""


def with_effective_precision(spark: SparkSession, settings: Settings) -> Settings:
    """Switches FP8 off, with one warning, where a card of the executors cannot compute with it.

    What takes effect decides the config id, so it has to be known before work starts.
    """
    if not (settings.caption_generation.fp8 or settings.caption_enhancement.fp8):
        return settings
    lowest = _lowest_capability(spark)
    if lowest >= FP8_CAPABILITY:
        return settings
    card = "no GPU" if lowest == (0, 0) else f"compute capability {lowest[0]}.{lowest[1]}"
    log.warning(
        "fp8 needs a card of compute capability 8.9 or more (%s): running in %s", card, settings.engine.dtype
    )
    return settings.model_copy(
        update={
            "caption_generation": settings.caption_generation.model_copy(update={"fp8": False}),
            "caption_enhancement": settings.caption_enhancement.model_copy(update={"fp8": False}),
        }
    )


def _lowest_capability(spark: SparkSession) -> tuple[int, int]:
    """The least compute capability that the executors' tasks see; (0, 0) where one sees no card."""
    slots = parallelism(spark)
    frame = spark.range(slots, numPartitions=slots).mapInPandas(_capabilities, "major int, minor int")
    return min((int(row.major), int(row.minor)) for row in frame.collect())


def _capabilities(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    for _ in batches:
        pass
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        shown = []
    cards = [tuple(int(part) for part in line.split(".")) for line in shown] or [(0, 0)]
    yield pd.DataFrame([min(cards)], columns=["major", "minor"])
