"""Filling windows with the frames that come out of a decoder."""

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from conf.errors import ClipError
from udfs.orientation import Orientation, frame_orientation
from udfs.video_source import Limits, check_size

Picture = npt.NDArray[np.uint8]
Transform = Callable[[Picture], Picture]
"""Turns one picture (H, W, 3) into one of another size (h, w, 3), uint8."""


class Renderer(Protocol):
    """Makes a picture straight from a decoded frame, where converting it at full size would be a waste."""

    def render(self, frame: Any, orientation: Orientation) -> Picture:
        """Returns the picture as displayed, uint8 (h, w, 3), RGB.

        Args:
            frame: the PyAV frame.
            orientation: how to turn what the frame holds.
        """


@runtime_checkable
class Resizer(Protocol):
    """A transform of one window that can write pictures straight into it, which spares memory and a copy."""

    def resize(self, picture: Picture, out: Picture | None) -> Picture:
        """Returns the picture in its new size, uint8 (h, w, 3).

        Args:
            picture: uint8 (H, W, 3).
            out: where the result may be written, of the size of the results before; None for the first one.
        """


Change = Transform | Renderer | Resizer
"""What becomes of a frame."""


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


class NumberedFrame(NamedTuple):
    """A decoded frame with its number, its presentation time in seconds and the PyAV frame."""

    number: int
    time_s: float
    frame: Any


class Shape:
    """Size and orientation of a clip: those of its first frame, to which all others are brought."""

    def __init__(self, frame: Any, limits: Limits) -> None:
        check_size(frame.width, frame.height, limits)
        self.coded_size = (frame.width, frame.height)
        self.orientation: Orientation = frame_orientation(frame)
        self.shown_size = self.orientation.shown_size(*self.coded_size)
        self._to_rgb = VideoReformatter()

    @property
    def is_upright(self) -> bool:
        """Whether pictures are shown as they are coded."""
        return self.orientation == Orientation()

    def picture(self, frame: Any) -> Picture:
        """The frame as displayed: uint8 (height, width, 3), RGB, contiguous."""
        width, height = self.coded_size
        coded: Any = self._to_rgb.reformat(frame, width, height, "rgb24", threads=1)
        return self.orientation.apply(coded.to_ndarray())

    def made(self, frame: Any, transform: Change | None, place: Picture | None) -> Picture:
        """The frame as displayed, after a transform, which may write it to its place, or from a renderer."""
        if isinstance(transform, Resizer):
            return transform.resize(self.picture(frame), place)
        if transform is None or callable(transform):
            picture = self.picture(frame)
            return transform(picture) if transform else picture
        if (frame.width, frame.height) != self.coded_size:
            frame = frame.reformat(*self.coded_size)
        return transform.render(frame, self.orientation)


class PendingWindow:
    """A window that is being filled."""

    def __init__(
        self, position: int, indices: Sequence[int], transform: Change | None, max_bytes: int
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

    def wants(self, number: int) -> bool:
        """Whether frame `number` is one of the window's."""
        at = bisect.bisect_left(self.indices, number)
        return at < len(self.indices) and self.indices[at] == number

    @property
    def place(self) -> Picture | None:
        """Where the next frame goes; None before the first one, which tells the size."""
        return None if self._frames is None else self._frames[self._filled]

    def add(self, number: int, picture: Picture, time_s: float) -> bool:
        """Puts frame `number` wherever the window wants it; returns whether the window is complete.

        A picture that lies at its place already is not copied.

        Raises:
            ClipError: a frame before it never came, or the window takes too much memory.
        """
        if self.indices[self._filled] != number:
            raise ClipError(f"frame {self.indices[self._filled]} cannot be decoded")
        if self._frames is None:
            self._frames = self._allocate(picture)
        end = bisect.bisect_right(self.indices, number)
        start = self._filled + (picture.base is self._frames)
        self._frames[start:end] = picture
        self._times_s[self._filled : end] = time_s
        self._filled = end
        return end == len(self.indices)

    def restart(self) -> None:
        """Forgets what came so far."""
        self._filled = 0

    def done(self) -> WindowFrames:
        """The window once it is complete."""
        return WindowFrames(self.position, self._frames, self._times_s)

    def failed(self, error: str) -> WindowFrames:
        """The window with the reason why it has no frames."""
        return WindowFrames(self.position, None, np.empty(0), error)

    def _allocate(self, picture: Picture) -> Picture:
        size = len(self.indices) * picture.nbytes
        if size > self._max_bytes:
            raise ClipError(
                f"{len(self.indices)} frames of {picture.shape[1]}x{picture.shape[0]} take {size} bytes, "
                f"more than {self._max_bytes}: lower sampling_fps or window_size"
            )
        return np.empty((len(self.indices), *picture.shape), np.uint8)


def pending_windows(
    windows: Sequence[Sequence[int]],
    transform: Transform | Sequence[Change | None] | None,
    limits: Limits,
) -> list[PendingWindow]:
    """The windows before their first frame; see `udfs.video.read_windows` for the arguments."""
    each = [transform] * len(windows) if transform is None or callable(transform) else list(transform)
    return [
        PendingWindow(position, indices, one, limits.max_window_bytes)
        for position, (indices, one) in enumerate(zip(windows, each, strict=True))
    ]


def fill(
    pending: list[PendingWindow], frames: Iterable[NumberedFrame], limits: Limits, why: Callable[[], str]
) -> Iterator[WindowFrames]:
    """Takes windows out of `pending` as they are completed or fail.

    Args:
        pending: the windows.
        frames: ascending; the first gives size and orientation of all, whoever wants it.
        limits: what the clip may cost.
        why: what is wrong with the clip so far, for errors; empty where nothing is.

    Raises:
        ClipError: there is no frame.
    """
    shape: Shape | None = None
    for one in frames:
        shape = shape or Shape(one.frame, limits)
        takers = [window for window in pending if window.wants(one.number)]
        if takers:
            yield from _give(takers, one, shape, pending, why)
        if not pending:
            return
    if shape is None:
        raise ClipError(f"not one frame of the clip can be decoded{why()}")


def _give(
    takers: list[PendingWindow],
    one: NumberedFrame,
    shape: Shape,
    pending: list[PendingWindow],
    why: Callable[[], str],
) -> Iterator[WindowFrames]:
    """Hands one frame to all windows that want it, converted and transformed once for each transform."""
    made: dict[Change | None, Picture] = {}
    for window in takers:
        if window.transform not in made:
            made[window.transform] = shape.made(one.frame, window.transform, window.place)
        try:
            complete = window.add(one.number, made[window.transform], one.time_s)
        except ClipError as error:
            pending.remove(window)
            yield window.failed(f"{error}{why()}")
            continue
        if complete:
            pending.remove(window)
            yield window.done()
