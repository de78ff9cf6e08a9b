"""The flatMap of clips into windows, for `DataFrame.mapInPandas`."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from udfs.cutting import ClipRef, WindowRule, cut_clip
from udfs.video import Limits
from udfs.worker_log import log_to_stderr

log = logging.getLogger(__name__)


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


def _tell(clip: ClipRef, rows: list[dict[str, Any]]) -> None:
    log.info("clip_id=%s windows=%d", clip.clip_id, sum("window_index" in row for row in rows))
    for row in rows:
        log.info("window_id=%s status=%s", row["window_id"], row["window_status"])
