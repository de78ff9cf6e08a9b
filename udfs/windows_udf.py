"""Clips into windows: the flatMap of the job, and the pandas UDF `cut_windows`."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
from pyspark.sql.types import ArrayType, StructType
from pyspark.sql.udf import UserDefinedFunction

from schemas.windows import WINDOWS
from udfs.cutting import ClipRef, WindowRule, cut_clip
from udfs.once import once_a_row
from udfs.video import Limits
from udfs.worker_log import log_to_stderr

log = logging.getLogger(__name__)

_OF_THE_CLIP = ("clip_id", "clip_no", "run_id", "commit_seq", "created_at")

WINDOW = StructType([field for field in WINDOWS.schema if field.name not in _OF_THE_CLIP])
"""One element of the UDF's answer: the columns of `windows` but for those that its clip or a commit has."""


def windows_of_clips(
    rule: WindowRule, limits: Limits, columns: list[str], *, check_frames: bool, verbose: bool
) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """Returns the function that turns batches of clips into batches of windows.

    Args:
        rule: how to cut and sample.
        limits: what decoding a clip may cost.
        columns: columns of the rows that it yields, in order.
        check_frames: decode every frame of a clip.
        verbose: log a line for each clip and window.
    """

    def flat_map(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        log_to_stderr(logging.INFO)
        for batch in batches:
            for row in batch.to_dict("records"):
                clip = ClipRef(**{str(name): value for name, value in row.items()})
                rows = cut_clip(clip, rule, limits, check_frames=check_frames)
                if verbose:
                    _tell(clip, rows)
                # Objects, so that a missing integer stays missing and does not become NaN.
                cells = [[one.get(name) for name in columns] for one in rows]
                yield pd.DataFrame(cells, columns=columns, dtype=object)

    return flat_map


def cut_windows_udf(
    rule: WindowRule, limits: Limits, prep_config_id: str, *, check_frames: bool, verbose: bool
) -> UserDefinedFunction:
    """Makes the UDF.

    Args:
        rule: how to cut and sample.
        limits: what decoding a clip may cost.
        prep_config_id: id of the rule, for the windows.
        check_frames: decode every frame of a clip.
        verbose: log a line for each clip and window.

    Returns:
        A UDF of `(clip_id string, clip_bytes binary, clip_uri string, content_id string)` to an array of
        `WINDOW`. It is nondeterministic to the optimizer, so that it is evaluated once a row.
    """

    def cut_windows(
        batches: Iterator[tuple[pd.Series, pd.Series, pd.Series, pd.Series]],
    ) -> Iterator[pd.Series]:
        log_to_stderr(logging.INFO)
        for batch in batches:
            answers = []
            for clip_id, clip_bytes, clip_uri, content_id in zip(*batch, strict=True):
                clip = ClipRef(clip_id, 0, content_id, clip_bytes, clip_uri)
                cut = cut_clip(clip, rule, limits, check_frames=check_frames)
                rows = [row | {"prep_config_id": prep_config_id} for row in cut]
                if verbose:
                    _tell(clip, rows)
                answers.append([{name: row.get(name) for name in WINDOW.fieldNames()} for row in rows])
            yield pd.Series(answers, dtype=object)

    return once_a_row(cut_windows, ArrayType(WINDOW))


def _tell(clip: ClipRef, rows: list[dict[str, Any]]) -> None:
    log.info("clip_id=%s windows=%d", clip.clip_id, sum("window_index" in row for row in rows))
    for row in rows:
        log.info("window_id=%s status=%s", row["window_id"], row["window_status"])
