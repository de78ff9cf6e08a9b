"""Reading clips: what a clip is made of, and the frames of its windows in one pass of decoding.

Frame numbers count clean frames in presentation order (see `video_decode`), the same in both functions.
"""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.errors import ClipError
from udfs.orientation import Orientation, frame_orientation
from udfs.video_decode import CleanFrames, TimedFrame, stream_rate
from udfs.video_source import Limits, Source, Stopwatch, check_size, open_video

__all__ = ["Limits", "Source", "Transform", "VideoInfo", "WindowFrames", "probe", "read_windows"]

Picture = npt.NDArray[np.uint8]
Transform = Callable[[Picture], Picture]
"""Turns one picture (H, W, 3) into one of another size (h, w, 3), uint8."""


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What a clip is made of.

    Attributes:
        times_s: float64 (num_frames,), real presentation time of every clean frame in seconds.
        frame_rate: the stream's average rate, else frames / duration.
        width: as displayed, in pixels.
        height: as displayed, in pixels.
        codec: ffmpeg's name of the codec, such as `h264`.
        rotation_deg: counterclockwise turn that displaying applies: 0, 90, 180 or 270.
        broken: where and why the clip breaks; None for a sound one. Only clean frames are counted.
    """

    times_s: npt.NDArray[np.float64]
    frame_rate: float
    width: int
    height: int
    codec: str
    rotation_deg: int
    broken: str | None

    @property
    def num_frames(self) -> int:
        """Number of clean frames."""
        return len(self.times_s)


@dataclass(frozen=True, eq=False)
class WindowFrames:
    """The frames of one window, or why there are none.

    Attributes:
        position: which of the windows that were asked for, from 0.
        frames: uint8 (n, height, width, 3), RGB as displayed, after the transform; None with an error.
        times_s: float64 (n,), real presentation times in seconds; empty with an error.
        error: None, or the reason a person can act on.
    """

    position: int
    frames: Picture | None
    times_s: npt.NDArray[np.float64]
    error: str | None = None


def probe(source: Source, limits: Limits | None = None) -> VideoInfo:
    """Decodes a clip from end to end and tells what it is made of.

    Args:
        source: bytes, local path or seekable binary file.
        limits: what the clip may cost.

    Raises:
        ClipError: the clip is no video in an allowed container, has no decodable frame, or is beyond the
            limits.
    """
    limits = limits or Limits()
    watch = Stopwatch(limits.max_seconds)
    with open_video(source, limits, watch) as (container, stream):
        clean = CleanFrames(container, stream, watch)
        frames = iter(clean)
        first = _first_frame(frames, clean)
        shape = _Shape(first.frame, limits)
        times_s = np.array([first.time_s, *(timed.time_s for timed in frames)])
        width, height = shape.shown_size
        return VideoInfo(
            times_s=times_s,
            frame_rate=stream_rate(stream) or _counted_rate(times_s, stream),
            width=width,
            height=height,
            codec=stream.codec_context.codec.canonical_name,
            rotation_deg=shape.orientation.rotation_deg,
            broken=clean.broken,
        )


def read_windows(
    source: Source,
    windows: Sequence[Sequence[int]],
    *,
    transform: Transform | Sequence[Transform | None] | None = None,
    limits: Limits | None = None,
) -> Iterator[WindowFrames]:
    """Decodes a clip once and hands over the frames of all its windows.

    Args:
        source: bytes, local path or seekable binary file.
        windows: the frame numbers of each window, ascending; a number may repeat, windows may overlap.
        transform: applied to each frame right after decoding, so that full-size frames don't pile up:
            one for all windows, or one for each.
        limits: what the clip may cost.

    Yields:
        Every window exactly once, as soon as its last frame is there; with its `error` when the clip
        cannot be opened, or lacks one of its frames.

    Raises:
        ValueError: a window is empty, or its frame numbers are negative or out of order.
    """
    limits = limits or Limits()
    watch = Stopwatch(limits.max_seconds)
    pending = _pending_windows(windows, transform, limits)
    error = ""
    try:
        with open_video(source, limits, watch) as (container, stream):
            clean = CleanFrames(container, stream, watch)
            for finished in _fill(pending, clean, limits):
                with watch.paused():
                    yield finished
            reason = f" ({clean.broken})" if clean.broken else ""
            error = f"the clip ends before the window's last frame{reason}"
    except ClipError as failure:
        error = str(failure)
    for window in pending:
        yield window.failed(error)


class _Shape:
    """Size and orientation of a clip: those of its first frame, to which all others are brought."""

    def __init__(self, frame: Any, limits: Limits) -> None:
        check_size(frame.width, frame.height, limits)
        self.coded_size = (frame.width, frame.height)
        self.orientation: Orientation = frame_orientation(frame)
        self.shown_size = self.orientation.shown_size(*self.coded_size)

    def picture(self, frame: Any) -> Picture:
        width, height = self.coded_size
        coded = frame.to_ndarray(format="rgb24", width=width, height=height)
        return self.orientation.apply(coded)


class _PendingWindow:
    """A window that is being filled."""

    def __init__(
        self, position: int, indices: Sequence[int], transform: Transform | None, max_bytes: int
    ) -> None:
        if not indices:
            raise ValueError(f"window {position} has no frames")
        if any(i > j for i, j in itertools.pairwise(indices)) or indices[0] < 0:
            raise ValueError(f"window {position}: frame numbers must be ascending, from 0 on")
        self.position, self.indices, self.transform = position, list(indices), transform
        self._max_bytes = max_bytes
        self._frames: Picture | None = None
        self._times_s = np.empty(len(indices))
        self._filled = 0

    def add(self, index: int, picture: Picture, time_s: float) -> bool:
        """Puts frame `index` wherever the window wants it; returns whether the window is complete."""
        if self._frames is None:
            self._frames = self._allocate(picture)
        end = bisect.bisect_right(self.indices, index)
        self._frames[self._filled : end] = picture
        self._times_s[self._filled : end] = time_s
        self._filled = end
        return end == len(self.indices)

    def _allocate(self, picture: Picture) -> Picture:
        size = len(self.indices) * picture.nbytes
        if size > self._max_bytes:
            raise ClipError(
                f"{len(self.indices)} frames of {picture.shape[1]}x{picture.shape[0]} take {size} bytes, "
                f"more than {self._max_bytes}: lower sampling_fps or window_size"
            )
        return np.empty((len(self.indices), *picture.shape), np.uint8)

    def done(self) -> WindowFrames:
        return WindowFrames(self.position, self._frames, self._times_s)

    def failed(self, error: str) -> WindowFrames:
        return WindowFrames(self.position, None, np.empty(0), error)


def _pending_windows(
    windows: Sequence[Sequence[int]], transform: Transform | Sequence[Transform | None] | None, limits: Limits
) -> list[_PendingWindow]:
    each = [transform] * len(windows) if transform is None or callable(transform) else list(transform)
    return [
        _PendingWindow(position, indices, one, limits.max_window_bytes)
        for position, (indices, one) in enumerate(zip(windows, each, strict=True))
    ]


def _fill(pending: list[_PendingWindow], clean: CleanFrames, limits: Limits) -> Iterator[WindowFrames]:
    """Takes windows out of `pending` as they are completed or fail."""
    frames = iter(clean)
    first = _first_frame(frames, clean)
    shape = _Shape(first.frame, limits)
    for index, timed in enumerate(itertools.chain([first], frames)):
        takers = [window for window in pending if _wants(window, index)]
        if takers:
            yield from _give(takers, index, timed.time_s, shape.picture(timed.frame), pending)
        if not pending:
            return


def _wants(window: _PendingWindow, index: int) -> bool:
    at = bisect.bisect_left(window.indices, index)
    return at < len(window.indices) and window.indices[at] == index


def _give(
    takers: list[_PendingWindow], index: int, time_s: float, picture: Picture, pending: list[_PendingWindow]
) -> Iterator[WindowFrames]:
    """Hands one picture to all windows that want it, transformed once for each transform."""
    made: dict[Transform | None, Picture] = {None: picture}
    for window in takers:
        if window.transform and window.transform not in made:
            made[window.transform] = window.transform(picture)
        try:
            complete = window.add(index, made[window.transform], time_s)
        except ClipError as error:
            pending.remove(window)
            yield window.failed(str(error))
            continue
        if complete:
            pending.remove(window)
            yield window.done()


def _first_frame(frames: Iterator[TimedFrame], clean: CleanFrames) -> TimedFrame:
    first = next(frames, None)
    if first is None:
        reason = f": {clean.broken}" if clean.broken else ""
        raise ClipError(f"not one frame of the clip can be decoded{reason}")
    return first


def _counted_rate(times_s: npt.NDArray[np.float64], stream: Any) -> float:
    """Returns frames / duration; the last frame lasts as long as the others on average."""
    if len(times_s) > 1:
        return float((len(times_s) - 1) / (times_s[-1] - times_s[0]))
    duration_s = float((stream.duration or 0) * stream.time_base)
    return 1.0 / duration_s if duration_s > 0 else 1.0
