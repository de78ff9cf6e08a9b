"""The UDFs under names that SQL knows: `caption_windows`, `enhance_caption`, `preview_webp`."""

import re
from collections.abc import Callable, Iterable, Mapping

from pyspark.sql import SparkSession
from pyspark.sql.udf import UserDefinedFunction

from conf.settings import Settings
from jobs.caption import caption_udf
from jobs.enhance import enhance_udf
from jobs.preview import preview_udf
from jobs.session import check_gpu_slots
from udfs.ffmpeg import check_ffmpeg


def _caption(spark: SparkSession, settings: Settings) -> UserDefinedFunction:
    check_gpu_slots(spark)
    return caption_udf(settings)


def _enhance(spark: SparkSession, settings: Settings) -> UserDefinedFunction:
    check_gpu_slots(spark)
    return enhance_udf(settings)


def _preview(spark: SparkSession, settings: Settings) -> UserDefinedFunction:
    check_ffmpeg()
    return preview_udf(settings)


FUNCTIONS: Mapping[str, Callable[[SparkSession, Settings], UserDefinedFunction]] = {
    "caption_windows": _caption,
    "enhance_caption": _enhance,
    "preview_webp": _preview,
}


def register_functions(spark: SparkSession, settings: Settings, names: Iterable[str] = FUNCTIONS) -> None:
    """Registers functions with a session; they work with these settings until registered anew.

    Args:
        spark: the session.
        settings: models, prompts and how previews look.
        names: which functions.

    Raises:
        SettingsError: something that a function needs is missing: weights, or an ffmpeg that makes WebP.
    """
    for name in names:
        spark.udf.register(name, FUNCTIONS[name](spark, settings))


def functions_in(statement: str) -> list[str]:
    """The functions that a statement calls, so that one without captions needs no weights."""
    return [name for name in FUNCTIONS if re.search(rf"\b{name}\s*\(", statement, re.IGNORECASE)]
