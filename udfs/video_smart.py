"""Decoding no more of a clip than its wanted frames need.

A picture that no other refers to only goes to the decoder when it is wanted, and nothing does between the
last wanted picture and the next IDR, after which nothing refers to what came before. (Not just any key
frame: in a stream with open GOPs, pictures after a key frame may refer to pictures before it. In VP8, VP9 and
AV1 a key frame is an IDR, and all other pictures up to the last wanted one go to the decoder.)
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import av.error

from udfs.video_decode import empty_packet
from udfs.video_packets import PacketIndex
from udfs.video_source import Stopwatch


class InexactError(Exception):
    """Raised when the wanted frames cannot be had this way: then all is to be decoded in order."""


def can_skip(index: PacketIndex) -> bool:
    """Whether an index allows to decode wanted frames alone."""
    return index.doubt is None and bool(index.units)


def wanted_frames(
    index: PacketIndex, stream: Any, wanted: set[int], watch: Stopwatch
) -> Iterator[tuple[int, Any]]:
    """Decodes the wanted frames of a clip, pixel by pixel those of decoding everything in order.

    Args:
        index: one that `can_skip` accepts.
        stream: of the index; nothing of it has been decoded yet.
        wanted: frame numbers.
        watch: limit of the working time.

    Yields:
        Frame number and PyAV frame, ascending, each wanted frame once.

    Raises:
        InexactError: a packet that was sent is damaged, a wanted frame does not come out, or pictures
            change their size.
    """
    missing = sorted(wanted, reverse=True)
    for number, frame in _sound(index, stream, wanted, watch):
        while missing and missing[-1] <= number:
            if missing.pop() != number:
                raise InexactError("a wanted frame did not come out of the decoder")
            yield number, frame
    if missing:
        raise InexactError("a wanted frame did not come out of the decoder")


def _sound(index: PacketIndex, stream: Any, wanted: set[int], watch: Stopwatch) -> Iterator[tuple[int, Any]]:
    """Decoded frames once no corrupt one can come that they were predicted from.

    A B-frame is shown before the frame behind it that it is predicted from, so that frames wait here as
    they do in `CleanFrames`. Of frames that nobody wants only the number is kept.
    """
    context = stream.codec_context
    size = (context.width, context.height)
    held: deque[tuple[int, Any]] = deque()
    hold = 2 * context.reorder_depth
    for frame in _decode(index, stream, wanted, watch):
        number = index.numbers.get(frame.pts)
        if frame.is_corrupt or number is None or (frame.width, frame.height) != size:
            raise InexactError(f"the frame at {frame.time or 0.0:.3f} s is not as its packet told")
        held.append((number, frame if number in wanted else None))
        if len(held) > hold:
            yield held.popleft()
    yield from held


def _decode(index: PacketIndex, stream: Any, wanted: set[int], watch: Stopwatch) -> Iterator[Any]:
    try:
        for at in needed_packets(index, wanted):
            watch.check()
            yield from index.packets[at].decode()
        yield from empty_packet(stream).decode()
    except av.error.FFmpegError as error:
        raise InexactError(str(error)) from error


def needed_packets(index: PacketIndex, wanted: set[int]) -> Iterator[int]:
    """Yields the positions of the packets that wanted pictures need.

    These are the packets from an IDR to the last wanted picture before the next IDR, without those whose
    picture is neither wanted nor one that others may refer to.

    Args:
        index: one that `can_skip` accepts.
        wanted: frame numbers.
    """
    starts = _safe_starts(index)
    top = max(units.layer for units in index.units)
    for start, end in zip(starts, [*starts[1:], len(index.packets)], strict=True):
        shown = {at for at in range(start, end) if index.numbers.get(index.packets[at].pts) in wanted}
        for at in range(start, max(shown, default=start - 1) + 1):
            units = index.units[at]
            if at in shown or units.is_reference or units.layer < top or units.has_parameters:
                yield at


def _safe_starts(index: PacketIndex) -> list[int]:
    """Where decoding may start: at IDRs, unless one of them relies on parameter sets sent before it."""
    idrs = [at for at, units in enumerate(index.units) if units.is_idr]
    if any(units.has_parameters for units in index.units) and not all(
        index.units[at].has_parameters for at in idrs
    ):
        return [0]
    return idrs
