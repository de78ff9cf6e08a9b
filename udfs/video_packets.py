"""What the packets of a clip tell without decoding: how many frames there are, and when each is shown.

Demuxing a whole clip takes milliseconds. Where the packets can be trusted, they give the frame numbers and
times of decoding everything in order, and show which packets a wanted frame needs.
"""

import statistics
from dataclasses import dataclass
from typing import Any

import av.error
import numpy as np
import numpy.typing as npt

from udfs.coded_pictures import PICTURE_CODECS, read_pictures
from udfs.nal_units import NAL_CODECS, Units, nal_layout, read_units
from udfs.video_decode import missing_end
from udfs.video_source import Stopwatch

TIMED_CONTAINERS = ("mov", "matroska", "flv", "mpegts")
"""Demuxers whose packets carry the true presentation times; AVI and raw streams guess them."""

MAX_PACKET_BYTES = 512 << 20
"""Packets of so many bytes are kept in memory; of larger clips none are."""

UNIT_CODECS = (*NAL_CODECS, *PICTURE_CODECS)
"""Codecs whose packets are taken apart, by ffmpeg's names."""

UNEVEN = 1.5
"""A gap of so many typical gaps between two frames may be a hole."""


@dataclass(frozen=True, eq=False)
class PacketIndex:
    """The packets of a stream, and what they tell.

    Attributes:
        packets: in the order of decoding; empty with a doubt.
        times_s: float64 (n,), presentation time of every frame that is shown, in seconds, ascending.
        numbers: frame number by pts.
        units: what each packet holds; empty for codecs other than `UNIT_CODECS`.
        doubt: why the packets may not tell the truth; None where they do.
        was_read: whether the container has been read.
    """

    packets: list[Any]
    times_s: npt.NDArray[np.float64]
    numbers: dict[int, int]
    units: list[Units]
    doubt: str | None
    was_read: bool = True

    @property
    def num_frames(self) -> int:
        """Number of frames that are shown."""
        return len(self.times_s)

    @property
    def is_even(self) -> bool:
        """Whether no gap between two frames is so large that a lost piece of the file may be behind it."""
        gaps = np.diff(self.times_s)
        return not len(gaps) or bool(gaps.max() <= UNEVEN * statistics.median(gaps.tolist()))

    def agrees(self, numbers: "list[int]", times_s: "list[float]") -> bool:
        """Whether the frames of these numbers have exactly these times."""
        return self.doubt is None and all(
            0 <= number < self.num_frames and self.times_s[number] == time_s
            for number, time_s in zip(numbers, times_s, strict=True)
        )


def is_timed(container: Any) -> bool:
    """Whether the packets of this container carry true times."""
    return any(name in TIMED_CONTAINERS for name in container.format.name.split(","))


def has_units(stream: Any) -> bool:
    """Whether the packets of this stream are taken apart."""
    return stream.codec_context.codec.canonical_name in UNIT_CODECS


def index_packets(container: Any, stream: Any, watch: Stopwatch) -> PacketIndex:
    """Demuxes a clip to its end.

    Args:
        container: opened and not yet read; where its packets carry no true times, it stays unread.
        stream: its video stream.
        watch: limit of the working time.
    """
    if not is_timed(container):
        return _doubtful(f"packets of {container.format.name} carry no true times", was_read=False)
    packets, doubt = _demux(container, stream, watch)
    if doubt:
        return _doubtful(doubt)
    units: list[Units] = []
    if has_units(stream):
        read = _units_of(packets, stream.codec_context)
        units = [one for one in read if one is not None and one.has_picture]
        if len(units) < len(read):
            return _doubtful("a packet is not built as its codec demands")
        # Frames before the first IDR may refer to what is not there; decoders leave some of them out.
        if not units[0].is_idr:
            return _doubtful("the stream does not begin with an IDR")
    seen = [packet for packet, one in zip(packets, units, strict=True) if one.is_shown] if units else packets
    shown = sorted(packet.pts for packet in seen if not packet.is_discard)
    time_base = stream.time_base
    times_s = np.array([_time_s(pts, time_base) for pts in shown])
    if not shown or not np.all(np.diff(times_s) > 0):
        return _doubtful("two packets have the same time")
    return PacketIndex(packets, times_s, {pts: n for n, pts in enumerate(shown)}, units, None)


def _units_of(packets: list[Any], context: Any) -> list[Units | None]:
    """What each packet holds; None for one that is not as its codec demands."""
    codec = context.codec.canonical_name
    layout = nal_layout(codec, context.extradata)
    if layout is not None:
        return [read_units(bytes(packet), layout) for packet in packets]
    return [read_pictures(bytes(packet), codec) for packet in packets]


def _demux(container: Any, stream: Any, watch: Stopwatch) -> tuple[list[Any], str | None]:
    """All packets but the empty one at the end, and what is wrong with them."""
    packets: list[Any] = []
    num_bytes, end = 0, 0
    # Each look at it makes a Fraction.
    time_base = stream.time_base
    try:
        for packet in container.demux(stream):
            watch.check()
            if packet.size == 0 and packet.pts is None:
                continue
            num_bytes += packet.size
            doubt = _packet_doubt(packet, time_base)
            if doubt or num_bytes > MAX_PACKET_BYTES:
                return [], doubt or f"the clip is larger than {MAX_PACKET_BYTES} bytes"
            packets.append(packet)
            end = max(end, packet.pts + (packet.duration or 0))
    except av.error.FFmpegError as error:
        end_s = _time_s(end, time_base)
        return [], f"the file cannot be read beyond {end_s:.3f} s: {error.strerror}"
    if not packets:
        return [], "there is no packet"
    end_s = _time_s(end, time_base)
    return packets, missing_end(container, stream, num_packets=len(packets), end_s=end_s)


def _packet_doubt(packet: Any, time_base: Any) -> str | None:
    if packet.pts is None or packet.size == 0:
        return "a packet has no time or no content"
    if packet.is_corrupt:
        return "a packet is damaged"
    if packet.time_base != time_base:
        return "times are counted in several units"
    if packet.has_sidedata("new_extradata") or packet.has_sidedata("param_change"):
        return "the stream changes on its way"
    return None


def _time_s(pts: int, time_base: Any) -> float:
    """The time as PyAV computes that of a frame, to the last bit."""
    return float(float(pts) * time_base.numerator / time_base.denominator)


def _doubtful(reason: str, *, was_read: bool = True) -> PacketIndex:
    return PacketIndex([], np.empty(0), {}, [], reason, was_read)
