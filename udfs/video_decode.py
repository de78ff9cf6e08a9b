"""The frames of a clip: clean ones only, in presentation order, each with its time.

This is what frame numbers count, in `windows` as in `captions` and `previews`. Frame n of a clip is the
n-th frame that decoding everything in order gives.
"""

import itertools
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
import av.error

from udfs.video_source import Stopwatch

TAG_TOLERANCE_S = 0.5
"""Matroska's note of a track's length may be off by this much before it counts as cut off."""


@dataclass(frozen=True)
class TimedFrame:
    """One clean frame.

    Attributes:
        frame: the PyAV frame.
        time_s: its presentation time in seconds, later than that of the frame before it.
    """

    frame: Any
    time_s: float


class CleanFrames:
    """Iterates over the clean frames of a stream and notes where it broke.

    A damaged packet spoils more than its own frame: what is decoded after it is predicted from it, and
    no decoder flags that. So nothing that is decoded after a break counts until the next key frame,
    neither the B-frames that are decoded after a corrupt frame but shown before it. Damage that the
    demuxer skips without a word (Matroska looks for the next cluster) only shows as a gap in the times.

    Attributes:
        broken: where and why the stream broke first; None while it has not.
    """

    def __init__(
        self, container: Any, stream: Any, watch: Stopwatch, packets: Sequence[Any] | None = None
    ) -> None:
        """Prepares the iteration.

        Args:
            container: of the stream.
            stream: of which nothing has been decoded.
            watch: limit of the working time.
            packets: those of the stream where it has been demuxed already, without any error.
        """
        self.broken: str | None = None
        self._container, self._stream, self._watch = container, stream, watch
        self._demuxed = packets
        self._num_packets = 0
        self._packet_numbers: dict[int, int] = {}
        self._broken_at: int | None = None
        # Decoded frames wait here until no corrupt frame can come that they were predicted from.
        self._held: deque[tuple[int, Any]] = deque()
        self._hold = 2 * stream.codec_context.reorder_depth

    def __iter__(self) -> Iterator[TimedFrame]:
        clock = _Clock(stream_rate(self._stream))
        for frame in self._clean():
            self._watch.check()
            yield TimedFrame(frame, clock.time_of(frame))

    def _clean(self) -> Iterator[Any]:
        for frame in self._decoded():
            number = self._packet_numbers.get(frame.pts, self._num_packets)
            if self._broken_at is not None and frame.key_frame and number > self._broken_at:
                self._broken_at = None
            if frame.is_corrupt:
                self._break(f"the frame at {frame.time or 0.0:.3f} s is corrupt", number)
            if self._broken_at is None or number < self._broken_at:
                self._held.append((number, frame))
            if len(self._held) > self._hold:
                yield self._held.popleft()[1]
        yield from (frame for _, frame in self._held)

    def _break(self, reason: str, number: int) -> None:
        """Marks packet `number` as damaged."""
        self.broken = self.broken or reason
        self._broken_at = number if self._broken_at is None else min(number, self._broken_at)
        while self._held and self._held[-1][0] >= number:
            self._held.pop()

    def _decoded(self) -> Iterator[Any]:
        for packet in self._packets():
            number = self._num_packets
            if packet.is_corrupt:
                self._break(f"the packet at {_packet_time(packet)} is damaged", number)
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                self._break(f"the packet at {_packet_time(packet)}: {error.strerror}", number)
                continue
            yield from frames

    def _packets(self) -> Iterator[Any]:
        """Demuxes; PyAV's last packet is empty and flushes the decoder."""
        packets = self._source()
        end_s = 0.0
        while True:
            self._watch.check()
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                self._break(
                    f"the file cannot be read beyond {end_s:.3f} s: {error.strerror}", self._num_packets
                )
                return
            if packet is None:
                break
            if packet.pts is not None:
                self._packet_numbers[packet.pts] = self._num_packets
                end_s = max(end_s, packet_end_s(packet))
            yield packet
            self._num_packets += 1
        self.broken = self.broken or missing_end(
            self._container, self._stream, num_packets=self._num_packets - 1, end_s=end_s
        )

    def _source(self) -> Iterator[Any]:
        if self._demuxed is None:
            return iter(self._container.demux(self._stream))
        return itertools.chain(self._demuxed, [empty_packet(self._stream)])


def empty_packet(stream: Any) -> Any:
    """The packet that makes the decoder of a stream hand over the frames it still holds."""
    packet: Any = av.Packet()
    packet.stream = stream
    # Else the frames that it brings out count their times in the decoder's unit, and round them otherwise.
    packet.time_base = stream.time_base
    return packet


def packet_end_s(packet: Any) -> float:
    """Until when a packet with a time is shown, in seconds."""
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def missing_end(container: Any, stream: Any, *, num_packets: int, end_s: float) -> str | None:
    """A file that was cut off gives no error: only what its header promised tells.

    Args:
        container: read to its end.
        stream: of the container.
        num_packets: packets of the stream that were there.
        end_s: until when they are shown, in seconds.

    Returns:
        What is missing; None where nothing is.
    """
    promised = len(stream.index_entries) if "mov" in container.format.name else 0
    if num_packets < promised:
        return f"the file is cut off: {promised - num_packets} of {promised} frames are missing"
    promised_s = _tagged_duration(stream.metadata.get("DURATION", ""))
    if end_s < promised_s - TAG_TOLERANCE_S:
        return f"the file is cut off at {end_s:.3f} s of {promised_s:.3f} s"
    return None


class _Clock:
    """Gives every frame a time later than the one before, whatever the container says."""

    def __init__(self, frame_rate: float | None) -> None:
        self._period = 1.0 / (frame_rate or 25.0)
        self._last = -math.inf

    def time_of(self, frame: Any) -> float:
        time = frame.time
        if time is None or time <= self._last:
            time = self._last + self._period if math.isfinite(self._last) else 0.0
        self._last = float(time)
        return self._last


def stream_rate(stream: Any) -> float | None:
    """Returns the stream's average rate in frames per second; None where the container has none."""
    rate = stream.average_rate
    return float(rate) if rate else None


def _packet_time(packet: Any) -> str:
    stamp = packet.pts if packet.pts is not None else packet.dts
    return "an unknown time" if stamp is None else f"{float(stamp * packet.time_base):.3f} s"


def _tagged_duration(tag: str) -> float:
    """Reads Matroska's DURATION tag; 0 where it is absent or odd.

    >>> _tagged_duration("00:01:02.500000000")
    62.5
    """
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tag.strip())
    if match is None:
        return 0.0
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
