"""Clips with their windows into mp4s of windows: the flatMap of the stage that fills `window_media`."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from conf.errors import ClipError
from schemas.status import PreviewStatus
from udfs.storage import open_clip
from udfs.structs import with_integers
from udfs.video import Limits, WindowRange
from udfs.window_mp4 import WindowMp4, cut_mp4s
from udfs.worker_log import log_to_stderr

Row = dict[str, Any]

_INTEGERS = ("window_index", "start_frame", "end_frame", "attempt")


def mp4s_of_windows(
    limits: Limits, columns: list[str]
) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """Returns the function that turns batches of clips with their windows into rows of one window each.

    One mp4 is in memory at a time, however many windows a clip has.

    Args:
        limits: what a clip may cost.
        columns: columns of the rows that it yields, in order.
    """

    def flat_map(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        log_to_stderr(logging.INFO)
        for batch in batches:
            for clip in batch.to_dict("records"):
                for row in clip_mp4s(clip, limits):
                    # Objects, so that a missing integer stays missing and does not become NaN.
                    cells = [[row.get(name) for name in columns]]
                    yield pd.DataFrame(cells, columns=columns, dtype=object)

    return flat_map


def clip_mp4s(clip: Any, limits: Limits) -> Iterator[Row]:
    """Makes the mp4s of a clip's windows.

    Args:
        clip: `clip_no`, `clip_id`, `clip_bytes`, `clip_uri` and `windows`, each with its keys, frame and
            time range and `window_error`.
        limits: what the clip may cost.

    Yields:
        One row for each window: its keys, and the columns of `window_media` that the mp4 fills in.
    """
    keys = {name: clip[name] for name in ("clip_no", "clip_id")}
    windows = [with_integers(window, _INTEGERS) for window in clip["windows"]]
    windows.sort(key=lambda window: window["window_index"] or 0)
    for window in windows:
        if window["start_frame"] is None:
            reason = f"the clip has no window: {window['window_error']}"
            yield keys | _row(window, PreviewStatus.SKIPPED, media_error=reason)
    cut = [window for window in windows if window["start_frame"] is not None]
    for made in _cut(clip, [_range(window) for window in cut], limits):
        window = cut[made.position]
        if made.mp4 is None:
            yield keys | _row(window, PreviewStatus.ERROR, media_error=made.error)
            continue
        yield keys | _row(
            window,
            PreviewStatus.SUCCESS,
            mp4_bytes=made.mp4,
            width=made.width,
            height=made.height,
            num_frames=made.num_frames,
            num_bytes=len(made.mp4),
        )


def _cut(clip: Any, ranges: list[WindowRange], limits: Limits) -> Iterator[WindowMp4]:
    if not ranges:
        return
    try:
        source = open_clip(clip["clip_bytes"], clip["clip_uri"])
    except ClipError as error:
        yield from (WindowMp4(position, error=str(error)) for position in range(len(ranges)))
        return
    yield from cut_mp4s(source, ranges, limits=limits)


def _range(window: Any) -> WindowRange:
    return WindowRange(*(window[name] for name in ("start_frame", "end_frame", "start_s", "end_s")))


def _row(window: Any, status: PreviewStatus, **more: Any) -> Row:
    names = ("window_id", "prep_config_id", "attempt", "window_index")
    keys = {name: window[name] for name in names}
    return keys | {"media_status": str(status)} | more
