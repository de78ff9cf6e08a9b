"""One clip, opened once: the times of its windows' frames, and the frames of all windows in one pass."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.errors import ClipError
from udfs.video_decode import CleanFrames
from udfs.video_packets import PacketIndex, has_units, index_packets
from udfs.video_probe import describe
from udfs.video_smart import InexactError, can_skip, wanted_frames
from udfs.video_source import Limits, Source, Stopwatch, open_video, skip_smoothing
from udfs.video_windows import (
    Change,
    NumberedFrame,
    PendingWindow,
    Transform,
    WindowFrames,
    fill,
    pending_windows,
)

Times = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class WindowRange:
    """Where a window begins and ends, as `probe` or `survey` told.

    Attributes:
        start_frame: number of its first frame.
        end_frame: number of its last frame.
        start_s: presentation time of its first frame in seconds.
        end_s: presentation time of its last frame in seconds.
    """

    start_frame: int
    end_frame: int
    start_s: float
    end_s: float


class FrameReader:
    """Reads the frames of one clip: `with FrameReader(source) as reader: ...`.

    The clip is demuxed once and its wanted frames are decoded once. Only where the packets turn out not to
    tell the truth is it opened again and decoded in order.
    """

    def __init__(self, source: Source, limits: Limits | None = None) -> None:
        """Prepares the reading; nothing is opened yet.

        Args:
            source: bytes, local path or seekable binary file.
            limits: what the clip may cost, over all that is asked of the reader.
        """
        self._source, self._limits = source, limits or Limits()
        self._watch = Stopwatch(self._limits.max_seconds)
        self._opened = contextlib.ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._index: PacketIndex | None = None
        self._in_order = False

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def times_s(self, ranges: Sequence[WindowRange]) -> list[npt.NDArray[np.float64]]:
        """The presentation times of all frames of windows, from the packets where these agree.

        Args:
            ranges: the windows.

        Returns:
            For each window float64 (end_frame - start_frame + 1,), in seconds; fewer where the clip has
            changed and ends before.

        Raises:
            ClipError: the clip cannot be read, or no frame of it can be decoded.
        """
        index = self._indexed()
        agree = all(index.agrees([r.start_frame, r.end_frame], [r.start_s, r.end_s]) for r in ranges)
        times_s = index.times_s if agree else self._decoded_times()
        return [times_s[r.start_frame : r.end_frame + 1] for r in ranges]

    def windows(
        self,
        windows: Sequence[Sequence[int]],
        *,
        times_s: Sequence[Times] | None = None,
        transform: Transform | Sequence[Change | None] | None = None,
    ) -> Iterator[WindowFrames]:
        """Hands over the frames of windows; see `read_windows`."""
        pending = pending_windows(windows, transform, self._limits)
        by_time = None if times_s is None else _numbers_by_time(windows, times_s)
        error = ""
        try:
            if by_time is not None and self._allows_skipping(by_time):
                yield from self._fill_wanted(pending)
            if pending:
                clean = self._clean_frames()
                yield from self._fill_in_order(pending, clean, by_time)
                error = f"the clip ends before the window's last frame{_why(clean)}"
        except ClipError as failure:
            error = str(failure)
        for window in pending:
            yield window.failed(error)

    def _allows_skipping(self, by_time: dict[float, int]) -> bool:
        """Whether decoding the wanted frames alone gives the frames of these times and numbers."""
        if self._in_order:
            return False
        self._open()
        if not has_units(self._stream):
            return False
        index = self._indexed()
        return can_skip(index) and index.agrees([*by_time.values()], [*by_time])

    def _fill_wanted(self, pending: list[PendingWindow]) -> Iterator[WindowFrames]:
        """Decodes the wanted frames alone; what is then still pending is to be decoded in order."""
        index = self._indexed()
        # The first frame of a clip gives the size of all, so that it is always decoded.
        wanted = {0}.union(*(window.indices for window in pending))
        frames = wanted_frames(index, self._stream, wanted, self._watch)
        numbered = (NumberedFrame(n, float(index.times_s[n]), frame) for n, frame in frames)
        try:
            yield from self._paused(fill(pending, numbered, self._limits, lambda: ""))
        except InexactError:
            for window in pending:
                window.restart()
        self._close()

    def _fill_in_order(
        self, pending: list[PendingWindow], clean: CleanFrames, by_time: dict[float, int] | None
    ) -> Iterator[WindowFrames]:
        numbered = (
            NumberedFrame(count if by_time is None else by_time.get(timed.time_s, -1), *_pair(timed))
            for count, timed in enumerate(clean)
        )
        return self._paused(fill(pending, numbered, self._limits, lambda: _why(clean)))

    def _paused(self, windows: Iterator[WindowFrames]) -> Iterator[WindowFrames]:
        """Doesn't count the time that the caller takes."""
        for window in windows:
            with self._watch.paused():
                yield window

    def _decoded_times(self) -> npt.NDArray[np.float64]:
        clean = self._clean_frames()
        skip_smoothing(self._stream)
        times_s = describe(clean, self._stream, self._limits).times_s
        self._close()
        self._in_order = True
        return times_s

    def _clean_frames(self) -> CleanFrames:
        """All frames in order, from the packets that are there already or from a file opened anew."""
        if self._index is not None and self._index.doubt and self._index.was_read:
            self._close()
        self._open()
        packets = self._index.packets if self._index is not None and not self._index.doubt else None
        return CleanFrames(self._container, self._stream, self._watch, packets)

    def _indexed(self) -> PacketIndex:
        if self._index is None:
            self._open()
            self._index = index_packets(self._container, self._stream, self._watch)
        return self._index

    def _open(self) -> None:
        if self._container is None:
            opened = open_video(self._source, self._limits, self._watch)
            self._container, self._stream = self._opened.enter_context(opened)

    def _close(self) -> None:
        """Leaves no decoder and no packet behind: what comes next starts anew."""
        self._container = self._stream = self._index = None
        self._opened.close()


def read_windows(
    source: Source,
    windows: Sequence[Sequence[int]],
    *,
    times_s: Sequence[Times] | None = None,
    transform: Transform | Sequence[Change | None] | None = None,
    limits: Limits | None = None,
) -> Iterator[WindowFrames]:
    """Decodes a clip once and hands over the frames of all its windows.

    Args:
        source: bytes, local path or seekable binary file.
        windows: the frame numbers of each window, ascending; a number may repeat, windows may overlap.
        times_s: the presentation times of these frames, as `probe` or `survey` told. With them frames are
            known by their times, and no more of the clip is decoded than is wanted, where that gives the
            same. Without them frames are counted, and the clip is decoded in order.
        transform: applied to each frame right after decoding, so that full-size frames don't pile up:
            one for all windows, or one for each, which may also be a `Renderer` or a `Resizer`.
        limits: what the clip may cost.

    Yields:
        Every window exactly once, as soon as its last frame is there; with its `error` when the clip
        cannot be opened, or lacks one of its frames.

    Raises:
        ValueError: a window is empty, its frame numbers are negative or out of order, or it has another
            number of times.
    """
    with FrameReader(source, limits) as reader:
        yield from reader.windows(windows, times_s=times_s, transform=transform)


def _numbers_by_time(windows: Sequence[Sequence[int]], times_s: Sequence[Times]) -> dict[float, int]:
    return {
        float(time_s): number
        for numbers, times in zip(windows, times_s, strict=True)
        for number, time_s in zip(numbers, times, strict=True)
    }


def _pair(timed: Any) -> tuple[float, Any]:
    return timed.time_s, timed.frame


def _why(clean: CleanFrames) -> str:
    return f" ({clean.broken})" if clean.broken else ""
