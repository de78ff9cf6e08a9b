"""Windows as mp4 files of their own: the same frames at the same times, encoded as H.264."""

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
from av.video.frame import PictureType

from conf.errors import ClipError, SettingsError
from udfs.video_decode import CleanFrames, TimedFrame, stream_rate
from udfs.video_reader import WindowRange
from udfs.video_source import Limits, Source, Stopwatch, open_video
from udfs.video_windows import Shape

ENCODER = "libx264"
OPTIONS = {"preset": "veryfast", "crf": "20"}
"""Good to look at and to train on, at a fraction of the time that smaller files would take."""

FINEST_TICK = Fraction(1, 1_000_000)
"""Of the times in an mp4, in seconds."""

DEFAULT_RATE = Fraction(25)
"""Of a clip that names none: a hint for the encoder, the frames have times of their own."""


@dataclass(frozen=True)
class WindowMp4:
    """The mp4 of one window, or why there is none.

    Attributes:
        position: which of the windows that were asked for, from 0.
        mp4: the file; None with an error.
        width: in pixels.
        height: in pixels.
        num_frames: number of frames.
        error: None, or the reason a person can act on.
    """

    position: int
    mp4: bytes | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    error: str | None = None


def check_encoder() -> None:
    """Raises SettingsError when PyAV cannot encode H.264."""
    if ENCODER not in av.codecs_available:
        raise SettingsError(
            f"pipeline.keep_window_mp4=True needs {ENCODER}, which this PyAV {av.__version__} lacks: install "
            "PyAV's wheel from PyPI"
        )


def cut_mp4s(
    source: Source, ranges: Sequence[WindowRange], *, limits: Limits | None = None
) -> Iterator[WindowMp4]:
    """Decodes a clip once and encodes each of its windows.

    The mp4 holds the window's frames as displayed, at their distances in time, from 0 on; without sound.
    Players want 8 bits, 4:2:0 colours and even sides, so that odd ones become a pixel shorter.

    Args:
        source: bytes, local path or seekable binary file.
        ranges: the windows in order, none in another.
        limits: what the clip may cost; the encoder's time counts.

    Yields:
        Every window exactly once, in order.

    Raises:
        ValueError: the windows are out of order.
    """
    if any(one.end_frame >= two.start_frame for one, two in itertools.pairwise(ranges)):
        raise ValueError("windows must be in order, none in another")
    limits = limits or Limits()
    watch = Stopwatch(limits.max_seconds)
    made = 0
    error = "the clip ends before the window's last frame"
    try:
        with open_video(source, limits, watch) as (container, stream):
            for mp4 in _encoded(CleanFrames(container, stream, watch), stream, ranges, limits):
                made += 1
                with watch.paused():
                    yield mp4
    except (ClipError, av.error.FFmpegError) as failure:
        error = str(failure)
    yield from (WindowMp4(position, error=error) for position in range(made, len(ranges)))


def _encoded(
    clean: CleanFrames, stream: Any, ranges: Sequence[WindowRange], limits: Limits
) -> Iterator[WindowMp4]:
    """Encodes windows until the frames or the windows end; the one that the end cuts off is among them."""
    frames = iter(clean)
    timed = next(frames, None)
    shape = Shape(timed.frame, limits) if timed else None
    for position, one in enumerate(ranges):
        file: _Mp4File | None = None
        while timed is not None and timed.time_s <= one.end_s:
            if timed.time_s >= one.start_s:
                assert shape is not None
                file = file or _Mp4File(shape, stream)
                file.add(timed)
            timed = next(frames, None)
        wanted = one.end_frame - one.start_frame + 1
        if file is not None and file.num_frames == wanted:
            yield file.finished(position)
        else:
            count = file.num_frames if file else 0
            if file is not None:
                file.close()
            why = f" ({clean.broken})" if clean.broken else ""
            yield WindowMp4(position, error=f"{count} of {wanted} frames can be decoded{why}")


class _Mp4File:
    """An mp4 that is being written to memory."""

    def __init__(self, shape: Shape, stream: Any) -> None:
        self.num_frames = 0
        self._shape = shape
        # Of two pixels at least, since 4:2:0 shares a colour among two by two.
        self._width, self._height = (max(2, side // 2 * 2) for side in shape.shown_size)
        self._tick = max(Fraction(stream.time_base), FINEST_TICK)
        self._first_s = 0.0
        self._last_pts = -1
        self._file = io.BytesIO()
        self._container: Any = av.open(self._file, "w", format="mp4")
        rate = Fraction(stream_rate(stream) or DEFAULT_RATE).limit_denominator(1001)
        self._stream = self._container.add_stream(ENCODER, rate=rate, options=dict(OPTIONS))
        self._stream.width, self._stream.height, self._stream.pix_fmt = self._width, self._height, "yuv420p"
        context, source = self._stream.codec_context, stream.codec_context
        context.time_base = self._stream.time_base = self._tick
        # As in decoding: a task has one core.
        context.thread_count = 1
        for name in ("color_primaries", "color_trc", "colorspace", "color_range"):
            setattr(context, name, getattr(source, name))
        if source.sample_aspect_ratio:
            turned = 1 / source.sample_aspect_ratio if shape.orientation.transpose else None
            context.sample_aspect_ratio = turned or source.sample_aspect_ratio

    def add(self, timed: TimedFrame) -> None:
        """Encodes the next frame."""
        if not self.num_frames:
            self._first_s = timed.time_s
        picture = self._shown(timed.frame)
        pts = max(self._last_pts + 1, round((timed.time_s - self._first_s) / self._tick))
        picture.pts, picture.time_base = pts, self._tick
        # Which frames are key frames was the old encoder's choice.
        picture.pict_type = PictureType.NONE
        self._last_pts = pts
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1

    def finished(self, position: int) -> WindowMp4:
        """Closes the file and hands it over."""
        self._container.mux(self._stream.encode(None))
        self.close()
        return WindowMp4(position, self._file.getvalue(), self._width, self._height, self.num_frames)

    def close(self) -> None:
        """Lets go of the encoder."""
        self._container.close()

    def _shown(self, frame: Any) -> Any:
        """The frame as displayed, in the format of the mp4."""
        if self._shape.is_upright:
            return frame.reformat(width=self._width, height=self._height, format="yuv420p")
        picture = av.VideoFrame.from_ndarray(self._shape.picture(frame), format="rgb24")
        return picture.reformat(width=self._width, height=self._height, format="yuv420p")
