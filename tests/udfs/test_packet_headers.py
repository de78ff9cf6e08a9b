"""What packets hold, as their headers tell, and what no encoder writes."""

import pytest

from udfs.coded_pictures import read_pictures
from udfs.nal_units import NalLayout, nal_layout, read_units


def test_units_are_read_and_what_no_encoder_writes_is_refused() -> None:
    h264 = nal_layout("h264", bytes([1, 100, 0, 31, 0xFF, 0xE1]))
    hevc = nal_layout("hevc", None)
    assert h264 == NalLayout(hevc=False, length_bytes=4)
    assert hevc == NalLayout(hevc=True, length_bytes=0)
    assert nal_layout("vp9", b"\1" * 30) is None
    idr = read_units(b"\0\0\0\2\x67\1" + b"\0\0\0\3\x65\1\2", h264)
    assert idr is not None
    assert (idr.has_picture, idr.is_idr, idr.has_parameters, idr.is_reference) == (True, True, True, True)
    wrong = [
        b"",
        b"\0\0\0\3\x65\1",
        b"\0\0\0\0\x65\1",
        b"\0\0\0\2\xe5\1",
        b"\0\0\0\2\x78\1",
        b"\0\0\0\6\x65\1\0\0\0\1",
        b"\xff" * 9,
    ]
    assert [read_units(data, h264) for data in wrong] == [None] * len(wrong)
    cra = read_units(b"\0\0\0\1\x2a\1\x80\0\0", hevc)
    assert cra is not None
    assert (cra.has_picture, cra.is_idr, cra.is_reference) == (True, False, True)
    trail_n, tsa_n = read_units(b"\0\0\1\0\1\x80", hevc), read_units(b"\0\0\1\4\2\x80", hevc)
    assert trail_n is not None
    assert tsa_n is not None
    assert (trail_n.is_reference, tsa_n.is_reference, tsa_n.layer - trail_n.layer) == (False, False, 1)
    assert read_units(b"\x2a\1\x80", hevc) is None


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        ("vp8", b""),
        ("vp8", b"\x10\0"),
        ("vp8", b"\xff" * 30),
        ("vp8", b"\x10\2\0\x9d\1\x2b" + b"\0" * 20),
        ("vp9", b""),
        ("vp9", b"\xff" * 30),
        ("vp9", b"\x82\0\x82\0\xc1\2\2\xc1"),
        ("av1", b"\xff" * 30),
        ("av1", b"\x32\x05\x10\0"),
        ("av1", b"\x32\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("av1", b"\x36\x08\x02\x10\0"),
        ("av1", b"\x0a\x02\x18\0\x32\x02\x10\0"),
        ("av1", b"\x32\x02\x10\0\x32\x02\x10\0"),
    ],
)
def test_packets_that_no_encoder_writes_or_that_show_several_pictures_are_refused(
    codec: str, data: bytes
) -> None:
    assert read_pictures(data, codec) is None


def test_headers_of_pictures_are_read() -> None:
    def told(data: bytes, codec: str) -> tuple[bool, ...]:
        units = read_pictures(data, codec)
        assert units is not None
        return units.has_picture, units.is_shown, units.is_idr, units.has_parameters

    assert told(b"\x10\2\0\x9d\1\x2a" + b"\0" * 20, "vp8") == (True, True, True, False)
    assert told(b"\x01\0\0\0", "vp8") == (True, False, False, False)
    assert told(b"\x82\0", "vp9") == (True, True, True, False)
    assert told(b"\xb1\0", "vp9") == (True, True, True, False), "profile 3"
    assert told(b"\x86\0", "vp9") == (True, True, False, False)
    assert told(b"\x88\0", "vp9") == (True, True, False, False), "shows a picture that came before"
    assert told(b"\x12\0\x0a\x02\0\0\x32\x02\x10\0", "av1") == (True, True, True, True)
    assert told(b"\x12\0\x32\x02\x20\0", "av1") == (True, False, False, False)
    assert told(b"\x12\0\x1a\x01\x80", "av1") == (True, True, False, False), "shows one that came before"
    assert told(b"\x12\0", "av1") == (False, False, False, False)
