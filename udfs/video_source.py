"""Opening a clip that nobody vouches for.

The demuxer gets a file object and no protocol at all, and only containers that hold their own media: a
playlist or a script that poses as a clip reads no other file. Time and picture size are limited.
"""

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import av.error

from conf.errors import ClipError

Source = bytes | str | BinaryIO
"""A clip: its bytes, the path of a local file, or a seekable binary file."""

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpegts,mpeg,ogg,asf,gif,ivf,h264,hevc,m4v,obu,av1"
)
"""Demuxers that may open a clip, by ffmpeg's names. None of them refers to other files."""


SAFE_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}

UNSMOOTHED = {"skip_loop_filter": "all"}
"""Options of a decoder that leaves out the loop filter, for those who don't look at pixels.

Frames come out and fail as always, since a loop filter changes pixels and reads nothing. The decoder that
`av.open` tries on the first frames is of that kind, and not the one that hands over frames.
"""


@dataclass(frozen=True)
class Limits:
    """What one clip may cost.

    Attributes:
        max_seconds: working time for one call; time that the caller of a generator takes is not counted.
        max_pixels: greatest width times height of a picture.
        max_window_bytes: greatest size of the frames of one window, as they are handed over.
        thread_count: threads of the decoder. Spark gives a task one core, and one thread reports errors
            at the packet that caused them.
    """

    max_seconds: float = 120.0
    max_pixels: int = 8192 * 8192
    max_window_bytes: int = 4 << 30
    thread_count: int = 1


class Stopwatch:
    """Counts working time against a limit; `paused` takes out the time that others spend."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._end = time.monotonic() + max_seconds

    def check(self) -> None:
        """Raises ClipError when the time is up."""
        if time.monotonic() > self._end:
            raise ClipError(f"the clip took longer than {self._max_seconds:g} s to decode")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it no time is counted."""
        start = time.monotonic()
        yield
        self._end += time.monotonic() - start


class _TimedFile:
    """The file as the demuxer sees it: no name, no size, and a deadline at every read."""

    def __init__(self, file: BinaryIO, watch: Stopwatch) -> None:
        self._file, self._watch, self._failed = file, watch, False

    def read(self, size: int) -> bytes:
        """Reads on; after a failure, which PyAV raises when the demuxer returns, there is no more."""
        if self._failed:
            return b""
        try:
            self._watch.check()
            return self._file.read(size)
        except OSError as error:
            self._failed = True
            raise ClipError(f"the clip cannot be read: {error}") from error
        except ClipError:
            self._failed = True
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextlib.contextmanager
def open_video(source: Source, limits: Limits, watch: Stopwatch) -> Iterator[tuple[Any, Any]]:
    """Opens a clip and picks its video stream, as ffmpeg picks it.

    A file object is read from its start and left open.

    Yields:
        The PyAV container and its video stream, ready to decode.

    Raises:
        ClipError: the clip is empty or cannot be read, is no video in an allowed container, has no
            picture, no decoder, or pictures beyond the limit.
    """
    with contextlib.ExitStack() as stack:
        file = _as_file(source, stack)
        try:
            container: Any = stack.enter_context(
                av.open(
                    _TimedFile(file, watch),
                    options={**SAFE_OPTIONS, **UNSMOOTHED},
                    metadata_errors="replace",
                )
            )
        except av.error.FFmpegError as error:
            raise ClipError(_opening_error(error)) from error
        yield container, _pick_stream(container, limits)


def _as_file(source: Source, stack: contextlib.ExitStack) -> BinaryIO:
    file: BinaryIO
    try:
        if isinstance(source, bytes):
            file = io.BytesIO(source)
        elif isinstance(source, str):
            file = stack.enter_context(open(source, "rb"))  # noqa: PTH123, SIM115 (a path may be odd)
        else:
            file = source
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
    except (OSError, ValueError) as error:
        raise ClipError(f"the clip cannot be read: {error}") from error
    if size == 0:
        raise ClipError("the clip is empty: it has 0 bytes")
    return file


def _opening_error(error: Exception) -> str:
    if isinstance(error, av.error.ArgumentError):
        return "not a clip in an allowed container (mp4/mov, mkv/webm, avi, flv, mpeg-ts, ogg, asf, gif)"
    if isinstance(error, av.error.InvalidDataError):
        return "not a video that can be read: not a video file, or cut off before its index"
    return f"the clip cannot be opened: {error}"


def _pick_stream(container: Any, limits: Limits) -> Any:
    stream = container.streams.best("video")
    if stream is None or stream.disposition & stream.disposition.attached_pic:
        raise ClipError("the clip has no video stream (sound only?)")
    context = stream.codec_context
    if context is None:
        raise ClipError("the clip's video codec has no decoder here")
    check_size(context.width, context.height, limits)
    context.thread_count = limits.thread_count
    # Decoders round sizes up; this only stops a stream that grows out of all proportion later on.
    context.options = {"max_pixels": str(4 * limits.max_pixels + 256 * 256)}
    return stream


def skip_smoothing(stream: Any) -> None:
    """Leaves out the loop filter of a decoder that hasn't started; see `UNSMOOTHED`."""
    context = stream.codec_context
    context.options = {**context.options, **UNSMOOTHED}


def check_size(width: int, height: int, limits: Limits) -> None:
    """Raises ClipError when a picture of this size is beyond the limit."""
    if width * height > limits.max_pixels:
        raise ClipError(f"pictures of {width}x{height} are above the limit of {limits.max_pixels} pixels")
