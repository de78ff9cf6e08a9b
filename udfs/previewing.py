"""From clips to previews, without Spark: decode each clip once, let ffmpeg write the WebPs."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from conf.errors import ClipError, PreviewError
from schemas.status import PreviewStatus
from udfs.preview import PreviewParams, make_preview, preview_frames, preview_warnings
from udfs.storage import open_clip
from udfs.video import Limits, WindowFrames, probe, read_windows

log = logging.getLogger(__name__)

Result = dict[str, Any]


@dataclass(frozen=True)
class PreviewWork:
    """One window to be shown: frames `start_frame` to `end_frame`, both inclusive; None: no window."""

    window_id: str
    start_frame: int | None
    end_frame: int | None
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
    results: dict[int, Result] = {
        at: _skipped(window) for at, window in enumerate(windows) if window.start_frame is None
    }
    wanted = [at for at in range(len(windows)) if at not in results]
    try:
        for position, result in _previews(
            clip_bytes, clip_uri, [windows[at] for at in wanted], params, limits
        ):
            results[wanted[position]] = result
    except ClipError as error:
        for at in wanted:
            results.setdefault(at, _failed(windows[at], str(error)))
    return [{"clip_id": clip_id} | results[at] for at in range(len(windows))]


def _previews(
    clip_bytes: bytes | None,
    clip_uri: str | None,
    windows: list[PreviewWork],
    params: PreviewParams,
    limits: Limits,
) -> Iterator[tuple[int, Result]]:
    if not windows:
        return
    info = probe(open_clip(clip_bytes, clip_uri), limits)
    ranges = [range(window.start_frame or 0, (window.end_frame or 0) + 1) for window in windows]
    picks = []
    for frames in ranges:
        times = info.times_s[frames.start : frames.stop]
        picks.append([frames.start + at for at in preview_frames(times, target_fps=params.target_fps)])
    for warning in preview_warnings(frame_rate=info.frame_rate, height=info.height, settings=params):
        for window in windows:
            log.warning("window_id=%s %s", window.window_id, warning)
    unique = [sorted(set(frames)) for frames in picks]
    source = open_clip(clip_bytes, clip_uri)
    for shown in read_windows(source, unique, transform=None, limits=limits):
        repeats = [unique[shown.position].index(frame) for frame in picks[shown.position]]
        yield shown.position, _preview(windows[shown.position], shown, repeats, params)


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
