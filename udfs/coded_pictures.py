"""The pictures that VP8, VP9 and AV1 packets consist of, as far as their headers tell.

Nothing is decoded. These codecs have pictures that are never shown, only referred to: a packet holds some of
them beside the one that it shows, or is one.
"""

from collections.abc import Iterator

from udfs.nal_units import Units

PICTURE_CODECS = ("vp8", "vp9", "av1")
"""ffmpeg's names of these codecs."""

_VP8_START_CODE = b"\x9d\x01\x2a"
_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6


def read_pictures(data: bytes, codec: str) -> Units | None:
    """Takes a packet apart.

    A key frame counts as an IDR: nothing behind it refers to what came before it. All pictures count as ones
    that others refer to.

    Args:
        data: the packet.
        codec: one of `PICTURE_CODECS`.

    Returns:
        What it holds; None where sizes don't add up, a header is none that an encoder writes, more than one
        picture is shown, or there are layers of several resolutions.
    """
    read = {"vp8": _vp8_picture, "vp9": _vp9_pictures, "av1": _av1_pictures}[codec]
    try:
        found = list(read(data))
    except (_NoPictureError, IndexError):
        return None
    pictures = [one for one in found if one is not None]
    shown = sum(is_shown for is_shown, _ in pictures)
    if shown > 1:
        return None
    return Units(
        has_picture=bool(pictures),
        is_idr=bool(pictures) and pictures[0][1],
        has_parameters=len(pictures) < len(found),
        is_reference=True,
        is_shown=bool(shown),
    )


class _NoPictureError(Exception):
    """Raised where bytes are not what the codec demands."""


Found = Iterator[tuple[bool, bool] | None]
"""For each picture whether it is shown, and whether it is a key frame; None for a header of the sequence."""


def _vp8_picture(data: bytes) -> Found:
    is_key = not data[0] & 1
    first_part = int.from_bytes(data[:3], "little") >> 5
    if first_part > len(data) or (is_key and data[3:6] != _VP8_START_CODE):
        raise _NoPictureError
    yield bool(data[0] & 0x10), is_key


def _vp9_pictures(data: bytes) -> Found:
    at = 0
    for size in _vp9_sizes(data):
        first, at = data[at], at + size
        if first >> 6 != 0b10:
            raise _NoPictureError
        # In profile 3 a reserved bit stands before these.
        flags = (first & 0b111) if first & 0b110000 == 0b110000 else first >> 1 & 0b111
        shows_another, is_key, shown = bool(flags & 4), not flags & 2, bool(flags & 1)
        yield shows_another or shown, is_key and not shows_another


def _vp9_sizes(data: bytes) -> list[int]:
    """Sizes of a packet's pictures: those in the index at its end, where it has one."""
    last = data[-1]
    if last & 0xE0 != 0xC0:
        return [len(data)]
    count, num_bytes = (last & 7) + 1, (last >> 3 & 3) + 1
    start = len(data) - 2 - count * num_bytes
    if start < 0 or data[start] != last:
        return [len(data)]
    ends = range(start + 1, len(data) - 1, num_bytes)
    sizes = [int.from_bytes(data[at : at + num_bytes], "little") for at in ends]
    if sum(sizes) != start or not all(sizes):
        raise _NoPictureError
    return sizes


def _av1_pictures(data: bytes) -> Found:
    for kind, head in _av1_units(data):
        if kind == _SEQUENCE_HEADER:
            if head[0] & 0b1000:
                # Of a still picture, in front of which headers are shorter.
                raise _NoPictureError
            yield None
        elif kind in (_FRAME_HEADER, _FRAME):
            shows_another, is_key, shown = head[0] >> 7, not head[0] >> 5 & 0b11, head[0] >> 4 & 1
            # A key frame that is shown later leaves what came before it in use until then.
            yield bool(shows_another or shown), bool(is_key and shown and not shows_another)


def _av1_units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind of each unit of a packet, and the first byte of what it holds."""
    at = 0
    while at < len(data):
        header = data[at]
        at += 1
        if header & 0x81:
            raise _NoPictureError
        if header & 4:
            if data[at] >> 3 & 0b11:
                raise _NoPictureError
            at += 1
        size = len(data) - at
        if header & 2:
            size, at = _leb128(data, at)
        if at + size > len(data):
            raise _NoPictureError
        yield header >> 3 & 0xF, data[at : at + min(size, 1)]
        at += size


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for shift in range(0, 56, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise _NoPictureError
