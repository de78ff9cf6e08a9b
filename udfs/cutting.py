"""Cutting one clip into windows: the rows of the table `windows`, without Spark."""

from dataclasses import dataclass
from typing import Any

from conf.errors import ClipError
from schemas.status import WindowStatus
from udfs.identity import no_window_uuid, window_uuid
from udfs.storage import open_clip
from udfs.video import Limits, VideoInfo, probe, survey
from udfs.windowing import PlannedWindow, plan_windows

MIN_FRAMES = 4


@dataclass(frozen=True)
class ClipRef:
    """One clip as the stages get it: its keys, and its bytes or where it lies."""

    clip_id: str
    clip_no: int
    content_id: str | None
    clip_bytes: bytes | None
    clip_uri: str | None
    attempt: int = 1


@dataclass(frozen=True)
class WindowRule:
    """The settings of the window rule; see `udfs.windowing.plan_windows`."""

    sampling_fps: float
    window_size: int
    remainder_threshold: int


def cut_clip(
    clip: ClipRef, rule: WindowRule, limits: Limits, *, check_frames: bool = False
) -> list[dict[str, Any]]:
    """Returns the window rows of a clip; one row with the reason where it has no window.

    Args:
        clip: the clip.
        rule: how to cut and sample.
        limits: what decoding may cost.
        check_frames: decode every frame, else only where packets don't tell; see `udfs.video.survey`.

    Returns:
        Rows with the columns of `windows` but those that the commit fills in and `prep_config_id`.
    """
    try:
        look = probe if check_frames else survey
        info = look(open_clip(clip.clip_bytes, clip.clip_uri), limits)
    except ClipError as error:
        return [_no_window(clip, WindowStatus.ERROR, str(error))]
    windows = plan_windows(
        len(info.times_s),
        info.frame_rate,
        sampling_fps=rule.sampling_fps,
        window_size=rule.window_size,
        remainder_threshold=rule.remainder_threshold,
    )
    if windows:
        return [_window(clip, info, index, window) for index, window in enumerate(windows)]
    reason = f"{len(info.times_s)} frames, fewer than the {MIN_FRAMES} that a window needs"
    if info.broken:
        return [_no_window(clip, WindowStatus.ERROR, f"{reason}: {info.broken}")]
    return [_no_window(clip, WindowStatus.SKIPPED, reason)]


def _window(clip: ClipRef, info: VideoInfo, index: int, window: PlannedWindow) -> dict[str, Any]:
    indices = list(window.frame_indices)
    return {
        **_keys(clip),
        "window_id": window_uuid(
            clip.clip_id, clip.content_id, start_frame=window.start_frame, end_frame=window.end_frame
        ),
        "window_index": index,
        "start_frame": window.start_frame,
        "end_frame": window.end_frame,
        "start_s": float(info.times_s[window.start_frame]),
        "end_s": float(info.times_s[window.end_frame]),
        "num_frames": window.end_frame - window.start_frame + 1,
        "frame_rate": float(info.frame_rate),
        "width": info.width,
        "height": info.height,
        "video_codec": info.codec,
        "frame_indices": indices,
        "frame_times_s": [float(info.times_s[i]) for i in indices],
        "window_status": str(WindowStatus.PARTIAL if info.broken else WindowStatus.SUCCESS),
        "window_error": info.broken,
    }


def _no_window(clip: ClipRef, status: WindowStatus, reason: str) -> dict[str, Any]:
    window_id = no_window_uuid(clip.clip_id, clip.content_id, attempt=clip.attempt)
    return {**_keys(clip), "window_id": window_id, "window_status": str(status), "window_error": reason}


def _keys(clip: ClipRef) -> dict[str, Any]:
    return {"clip_id": clip.clip_id, "clip_no": clip.clip_no, "attempt": clip.attempt}
