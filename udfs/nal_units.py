"""The units that H.264 and HEVC packets consist of, as far as their headers tell.

Nothing is decoded: a packet is taken apart at the lengths or start codes of its units.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

NAL_CODECS = ("h264", "hevc")
"""ffmpeg's names of these codecs."""

_START_CODE = b"\0\0\1"
_FORBIDDEN = re.compile(rb"\0\0[\0-\2]")
"""An encoder escapes these inside a unit, so that only damage can put them there."""


@dataclass(frozen=True)
class NalLayout:
    """How the packets of a stream hold their units.

    Attributes:
        hevc: HEVC, else H.264.
        length_bytes: bytes of the length before each unit; 0 where start codes separate them (Annex B).
    """

    hevc: bool
    length_bytes: int


@dataclass(frozen=True)
class Units:
    """What one packet holds.

    Attributes:
        has_picture: it holds at least one slice.
        is_idr: its picture is an IDR, after which nothing refers to what came before.
        has_parameters: it holds parameter sets.
        is_reference: other pictures of its layer may be predicted from its picture.
        layer: temporal layer of its picture, whose pictures may be predicted from those of lower ones; always
            0 in H.264.
        is_shown: its picture is shown; always so in H.264 and HEVC.
    """

    has_picture: bool
    is_idr: bool
    has_parameters: bool
    is_reference: bool
    layer: int = 0
    is_shown: bool = True


def nal_layout(codec: str, extradata: bytes | None) -> NalLayout | None:
    """Returns the layout of a stream; None for codecs other than H.264 and HEVC.

    >>> nal_layout("h264", bytes([1, 100, 0, 31, 255, 225]))
    NalLayout(hevc=False, length_bytes=4)

    Args:
        codec: ffmpeg's name of the codec.
        extradata: the stream's extradata: avcC, hvcC or Annex B.
    """
    if codec not in NAL_CODECS:
        return None
    hevc = codec == "hevc"
    at = 21 if hevc else 4
    # Annex B begins with a zero byte, the boxes avcC and hvcC with their version, 1.
    boxed = extradata is not None and len(extradata) > at and extradata[0] == 1
    return NalLayout(hevc, (extradata[at] & 3) + 1 if boxed and extradata else 0)


def read_units(data: bytes, layout: NalLayout) -> Units | None:
    """Takes a packet apart.

    Args:
        data: the packet.
        layout: of its stream.

    Returns:
        What it holds; None where it is no unbroken sequence of proper units: lengths that don't add up, a
        header that no encoder writes, or bytes that no encoder leaves inside a unit.
    """
    spans = _lengths(data, layout.length_bytes) if layout.length_bytes else _start_codes(data)
    if not spans:
        return None
    for start, end in spans:
        if data[start] & 0x80 or _FORBIDDEN.search(data, start, end):
            return None
    if not layout.hevc:
        return _h264_units(bytes(data[start] for start, _ in spans))
    return _hevc_units(tuple(data[start : start + 2] for start, _ in spans))


def _lengths(data: bytes, length_bytes: int) -> list[tuple[int, int]] | None:
    spans, at = [], 0
    while at < len(data):
        start = at + length_bytes
        at = start + int.from_bytes(data[at:start], "big")
        if start >= at or at > len(data):
            return None
        spans.append((start, at))
    return spans


def _start_codes(data: bytes) -> list[tuple[int, int]] | None:
    starts, at = [], data.find(_START_CODE)
    while at >= 0:
        starts.append(at + 3)
        at = data.find(_START_CODE, at + 3)
    if not starts or data[: starts[0] - 3].strip(b"\0"):
        return None
    ends = [start - 3 for start in starts[1:]] + [len(data)]
    spans = []
    for start, end in zip(starts, ends, strict=True):
        # Zeros before a start code belong to neither unit.
        kept = len(data[start:end].rstrip(b"\0"))
        if not kept:
            return None
        spans.append((start, start + kept))
    return spans


@lru_cache(maxsize=1024)
def _h264_units(headers: bytes) -> Units | None:
    types = [header & 0x1F for header in headers]
    if any(not 1 <= kind <= 20 for kind in types):
        return None
    return Units(
        has_picture=any(kind in (1, 2, 5) for kind in types),
        is_idr=5 in types,
        has_parameters=any(kind in (7, 8, 13, 15) for kind in types),
        is_reference=any(header & 0x60 for header, kind in zip(headers, types, strict=True) if kind <= 5),
    )


@lru_cache(maxsize=1024)
def _hevc_units(headers: tuple[bytes, ...]) -> Units | None:
    types = [header[0] >> 1 & 0x3F for header in headers]
    if any(22 <= kind <= 31 or (kind > 40 and kind < 48) for kind in types):
        return None
    return Units(
        has_picture=any(kind <= 21 for kind in types),
        is_idr=any(kind in (19, 20) for kind in types),
        has_parameters=any(32 <= kind <= 34 for kind in types),
        # Of the types below 16 the even ones are for pictures that no other of their layer refers to.
        is_reference=any(kind <= 21 and (kind % 2 or kind >= 16) for kind in types),
        layer=max(header[-1] & 7 for header in headers),
    )
