"""From clips to previews, without Spark: decode each clip once, let ffmpeg write the WebPs."""

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from conf.errors import PreviewError
from schemas.status import PreviewStatus
from udfs.one_pass import Order, serve
from udfs.preview import PreviewParams, PreviewScaler, make_preview, preview_frames, preview_warnings
from udfs.video import FrameReader, Limits, WindowFrames, WindowRange

log = logging.getLogger(__name__)

Result = dict[str, Any]


@dataclass(frozen=True)
class PreviewWork:
    """One window to be shown; all but its id and error is None where the clip has no window.

    Attributes:
        window_id: its id.
        start_frame: its first frame.
        end_frame: its last frame, inclusive.
        start_s: presentation time of its first frame in seconds.
        end_s: presentation time of its last frame in seconds.
        frame_rate: of the clip.
        height: of the clip as displayed, in pixels.
        window_error: what is wrong with the clip, None for nothing.
    """

    window_id: str
    start_frame: int | None
    end_frame: int | None
    start_s: float | None
    end_s: float | None
    frame_rate: float | None
    height: int | None
    window_error: str | None


def preview_clip(
    clip_id: str,
    clip_bytes: bytes | None,
    clip_uri: str | None,
    windows: list[PreviewWork],
    *,
    params: PreviewParams,
    limits: Limits,
) -> list[Result]:
    """Makes the previews of a clip's windows; one result for each, in order."""
    previews = PreviewTaker(clip_id, windows, params)
    if previews.is_wanted:
        serve(clip_bytes, clip_uri, [previews], limits)
    return previews.results()


class PreviewTaker:
    """Takes the frames that previews show and has ffmpeg make WebPs of them."""

    def __init__(self, clip_id: str, windows: list[PreviewWork], params: PreviewParams) -> None:
        self._clip_id, self._windows, self._params = clip_id, windows, params
        self._results: dict[int, Result] = {
            at: _skipped(window) for at, window in enumerate(windows) if window.start_frame is None
        }

    @property
    def is_wanted(self) -> bool:
        """Whether any window is to be shown."""
        return len(self._results) < len(self._windows)

    def orders(self, reader: FrameReader) -> list[Order]:
        """The frames that ffmpeg's fps filter picks from the times of all frames."""
        shown = [at for at in range(len(self._windows)) if at not in self._results]
        ranges = [_range(self._windows[at]) for at in shown]
        scaler = PreviewScaler(self._params.target_height)
        orders = []
        for at, one, times_s in zip(shown, ranges, reader.times_s(ranges), strict=True):
            if len(times_s) <= one.end_frame - one.start_frame:
                self._results[at] = _failed(self._windows[at], "the clip ends before the window's last frame")
                continue
            self._warn(self._windows[at])
            picks = preview_frames(times_s, target_fps=self._params.target_fps)
            unique = sorted(set(picks))
            repeats = [unique.index(pick) for pick in picks]
            numbers = [one.start_frame + pick for pick in unique]
            orders.append(Order(numbers, times_s[unique], scaler, partial(self._show, at, repeats)))
        return orders

    def fail(self, reason: str) -> None:
        """The clip cannot be read."""
        for at, window in enumerate(self._windows):
            self._results.setdefault(at, _failed(window, reason))

    def results(self) -> list[Result]:
        """One result for each window, in order; complete after `serve`."""
        return [{"clip_id": self._clip_id} | self._results[at] for at in range(len(self._windows))]

    def _show(self, at: int, repeats: list[int], frames: WindowFrames) -> None:
        self._results[at] = _preview(self._windows[at], frames, repeats, self._params)

    def _warn(self, window: PreviewWork) -> None:
        if window.frame_rate is None or window.height is None:
            return
        warnings = preview_warnings(frame_rate=window.frame_rate, height=window.height, settings=self._params)
        for warning in warnings:
            log.warning("window_id=%s %s", window.window_id, warning)


def _range(window: PreviewWork) -> WindowRange:
    """Where a window lies; without times it agrees with no packet, so that the clip is decoded for them."""
    return WindowRange(
        window.start_frame or 0,
        window.end_frame or 0,
        math.nan if window.start_s is None else window.start_s,
        math.nan if window.end_s is None else window.end_s,
    )


def _preview(window: PreviewWork, shown: WindowFrames, repeats: list[int], params: PreviewParams) -> Result:
    if shown.frames is None:
        return _failed(window, shown.error or "its frames cannot be decoded")
    try:
        preview = make_preview(shown.frames[repeats], settings=params)
    except PreviewError as error:
        log.error("window_id=%s %s", window.window_id, error)
        return _failed(window, str(error))
    if params.verbose:
        log.info("window_id=%s preview_bytes=%d", window.window_id, len(preview.webp))
    return {
        "window_id": window.window_id,
        "webp": preview.webp,
        "width": preview.width,
        "height": preview.height,
        "num_frames": preview.num_frames,
        "num_bytes": len(preview.webp),
        "preview_status": str(PreviewStatus.SUCCESS),
    }


def _failed(window: PreviewWork, reason: str) -> Result:
    status = str(PreviewStatus.ERROR)
    return {"window_id": window.window_id, "preview_status": status, "preview_error": reason}


def _skipped(window: PreviewWork) -> Result:
    status, reason = str(PreviewStatus.SKIPPED), f"the clip has no window: {window.window_error}"
    return {"window_id": window.window_id, "preview_status": status, "preview_error": reason}
