"""Decoding only what is wanted: the frames, times and counts are those of decoding everything in order."""

import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media_maker import make_clip, read_index, run_ffmpeg, spoil_packet, truncate
from tests.udfs.media import MADE, REAL, made_clip, real_clip
from udfs.coded_pictures import read_pictures
from udfs.cutting import ClipRef, WindowRule, cut_clip
from udfs.video import FrameReader, Limits, VideoInfo, WindowFrames, WindowRange, probe, read_windows, survey
from udfs.video_packets import PacketIndex, index_packets
from udfs.video_smart import can_skip, needed_packets, wanted_frames
from udfs.video_source import Stopwatch, open_video

X264 = {"codec": "h264", "b_frames": 3}
HARD: dict[str, dict[str, Any]] = {
    "pyramid.mp4": {**X264, "options": {"preset": "fast", "x264-params": "b-pyramid=normal:ref=4"}},
    "open_gop.ts": {**X264, "gop": 12, "options": {"preset": "fast", "x264-params": "open-gop=1"}},
    "intra_refresh.mp4": {"gop": 20, "options": {"preset": "fast", "x264-params": "intra-refresh=1"}},
    "paff.ts": {**X264, "options": {"preset": "fast", "flags": "+ilme+ildct", "x264-params": "tff=1"}},
    "h265_open_gop.mkv": {
        **{"codec": "h265", "b_frames": 3, "gop": 12},
        "options": {"preset": "fast", "x265-params": "log-level=none:open-gop=1"},
    },
    "h265_layers.mp4": {
        **{"codec": "h265", "b_frames": 3},
        "options": {"preset": "fast", "x265-params": "log-level=none:temporal-layers=3:open-gop=0"},
    },
    "av1_short_gop.mkv": {"codec": "av1", "gop": 16, "options": {"preset": "8"}},
    "vp8_short_gop.webm": {"codec": "vp8", "gop": 16},
}
"""Streams in which a careless choice of packets loses frames or spoils them."""

ALL = [*REAL, *MADE, *HARD]
SKIPPING = (
    *("h264", "h265", "vp8", "vp9", "av1"),
    *(
        "edit_list",
        "nasa",
        "pancake",
        "sintel",
        "testsrc2_odd",
        "testsrc2_vp9",
        "tiny",
        "unordered",
        "video_90",
    ),
)


@pytest.fixture(params=ALL)
def clip(request: pytest.FixtureRequest, clip_folder: Path) -> Path:
    return any_clip(clip_folder, request.param)


def any_clip(folder: Path, name: str) -> Path:
    if name in HARD:
        path = folder / name
        return path if path.exists() else make_clip(path, **HARD[name])
    return made_clip(folder, name) if name in MADE else real_clip(name)


def chosen(num_frames: int) -> list[list[int]]:
    """Sparse windows, dense ones, one over the end alone, and frames that repeat."""
    some = [
        sorted({*range(start, num_frames, step)}) for start, step in ((0, 13), (5, 7), (num_frames // 2, 1))
    ]
    return [one[:24] for one in some if one] + [[num_frames - 1] * 2]


def same(a: WindowFrames, b: WindowFrames) -> bool:
    return (
        (a.position, a.error) == (b.position, b.error)
        and np.array_equal(a.times_s, b.times_s)
        and a.frames is not None
        and b.frames is not None
        and np.array_equal(a.frames, b.frames)
    )


def wanted_of(path: Path, info: VideoInfo, windows: list[list[int]]) -> list[WindowFrames]:
    return list(read_windows(str(path), windows, times_s=[info.times_s[one] for one in windows]))


def test_wanted_frames_are_pixel_by_pixel_those_of_decoding_in_order(clip: Path) -> None:
    info = probe(str(clip))
    for window in chosen(info.num_frames):
        [in_order], [wanted] = read_windows(str(clip), [window]), wanted_of(clip, info, [window])
        assert same(in_order, wanted)
    several = chosen(info.num_frames)
    in_order_all, wanted_all = list(read_windows(str(clip), several)), wanted_of(clip, info, several)
    assert all(map(same, in_order_all, wanted_all))


def test_a_survey_of_the_packets_tells_what_decoding_tells(clip: Path) -> None:
    probed, surveyed = probe(str(clip)), survey(str(clip))
    assert np.array_equal(probed.times_s, surveyed.times_s)
    others = [name for name in vars(probed) if name != "times_s"]
    assert [getattr(probed, name) for name in others] == [getattr(surveyed, name) for name in others]


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith(SKIPPING)])
def test_no_clip_of_a_common_kind_needs_to_be_decoded_in_order(clip_folder: Path, name: str) -> None:
    index, decoded = decode_wanted(any_clip(clip_folder, name), {0, 2})
    assert can_skip(index)
    assert decoded == [0, 2]


def decode_wanted(path: Path, wanted: set[int]) -> tuple[PacketIndex, list[int]]:
    watch = Stopwatch(60)
    with open_video(str(path), Limits(), watch) as (container, stream):
        index = index_packets(container, stream, watch)
        if not can_skip(index):
            return index, []
        return index, [number for number, _ in wanted_frames(index, stream, wanted, watch)]


def test_nothing_is_decoded_beyond_what_the_wanted_frames_need(clip_folder: Path) -> None:
    index, _ = decode_wanted(made_clip(clip_folder, "h264.mp4"), set())
    assert list(needed_packets(index, {3})) == [0, 1, 2, 3]
    assert list(needed_packets(index, {31, 33})) == [30, 31, 32, 33]
    assert list(needed_packets(index, set())) == []
    # Frames after a key frame of an open GOP lean on frames before it.
    open_gop, decoded = decode_wanted(any_clip(clip_folder, "open_gop.ts"), {50})
    assert decoded == [50]
    sent = list(needed_packets(open_gop, {50}))
    assert (sent[0], len(sent) > 30) == (0, True)


@pytest.mark.parametrize("name", ["pyramid.mp4", "open_gop.ts", "h265_b_frames.mp4", "h265_layers.mp4"])
def test_a_picture_that_no_other_leans_on_is_sent_only_when_wanted(clip_folder: Path, name: str) -> None:
    index, _ = decode_wanted(any_clip(clip_folder, name), set())
    alone = {at for at, units in enumerate(index.units) if not units.is_reference}
    [*before, last] = needed_packets(index, {0, 29})
    spared = set(range(last)) - set(before)
    assert spared
    assert spared <= alone
    wanted = {index.numbers[index.packets[at].pts] for at in spared}
    assert set(needed_packets(index, {0, 29} | wanted)) == set(range(last + 1))


@pytest.mark.parametrize("name", ["av1_short_gop.mkv", "vp8_short_gop.webm", "vp9.webm", "vp9_alt_ref.webm"])
def test_of_other_codecs_all_is_sent_from_a_key_frame_to_the_last_wanted_frame(
    clip_folder: Path, name: str
) -> None:
    index, decoded = decode_wanted(any_clip(clip_folder, name), {0, 55})
    assert decoded == [0, 55]
    keys = [at for at, units in enumerate(index.units) if units.is_idr]
    (wanted,) = [at for at, packet in enumerate(index.packets) if index.numbers.get(packet.pts) == 55]
    assert len(keys) > 1
    assert list(needed_packets(index, {0, 55})) == [
        0,
        *range(max(at for at in keys if at <= wanted), wanted + 1),
    ]


def test_pictures_that_are_never_shown_are_told_from_the_others(clip_folder: Path) -> None:
    apart, _ = decode_wanted(any_clip(clip_folder, "vp8_alt_ref.webm"), set())
    assert not all(units.is_shown for units in apart.units)
    assert apart.num_frames == 60 < len(apart.packets)
    within, _ = decode_wanted(any_clip(clip_folder, "vp9_alt_ref.webm"), set())
    assert within.num_frames == 60 == len(within.packets)
    superframes = [packet for packet in within.packets if bytes(packet)[-1] & 0xE0 == 0xC0]
    assert superframes
    # Cut short, the sizes in its index do not add up any more.
    data = bytes(superframes[0])
    assert read_pictures(data, "vp9") is not None
    assert read_pictures(data[1:], "vp9") is None


@pytest.mark.parametrize("name", ["mpeg4.avi", "testsrc2_mpeg4.avi", "gradient.gif"])
def test_containers_without_true_times_are_doubted(clip_folder: Path, name: str) -> None:
    index, _ = decode_wanted(any_clip(clip_folder, name), {0})
    assert index.doubt is not None
    assert not index.was_read


@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        *[(suffix, {"b_frames": 3}) for suffix in ("mp4", "mkv", "ts")],
        ("flv", {"b_frames": 0}),
        *[("webm", {"codec": codec}) for codec in ("vp8", "vp9")],
        ("mkv", {"codec": "av1"}),
    ],
)
@pytest.mark.parametrize("number", [3, 29])
def test_a_spoilt_packet_shows_without_decoding(
    tmp_path: Path, suffix: str, how: dict[str, Any], number: int
) -> None:
    whole = make_clip(tmp_path / f"whole.{suffix}", gop=20, **how)
    path = spoil_packet(whole, tmp_path / f"spoilt.{suffix}", number=number)
    probed, surveyed = probe(str(path)), survey(str(path))
    assert np.array_equal(probed.times_s, surveyed.times_s)
    assert probed.broken == surveyed.broken


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("name", "codec", "how"),
    [
        *[(name, "h264", {}) for name in ("a.mkv", "a.ts", "a.flv")],
        ("f.mp4", "h264", {"movflags": "faststart"}),
        *[("a.webm", codec, {}) for codec in ("vp8", "vp9", "av1")],
    ],
)
def test_a_clip_cut_off_shows_without_decoding(
    tmp_path: Path, name: str, codec: str, how: dict[str, str], keep: float
) -> None:
    whole = make_clip(tmp_path / f"whole_{name}", codec=codec, gop=10, container_options=how)
    path = truncate(whole, tmp_path / name, keep=keep)
    probed, surveyed = probe(str(path)), survey(str(path))
    assert np.array_equal(probed.times_s, surveyed.times_s)
    assert (probed.broken is None, probed.broken) == (surveyed.broken is None, surveyed.broken)


def spoil_payload(source: Path, path: Path, *, number: int) -> Path:
    """Overwrites the middle of one packet's picture data: no length and no header changes."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packet = list(container.demux(video=0))[number]
    assert packet.pos is not None
    start, end = packet.pos + packet.size // 3, packet.pos + packet.size * 2 // 3
    data[start:end] = np.random.default_rng(number).integers(1, 256, end - start, np.uint8).tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("b_frames", [0, 3])
def test_damage_inside_pictures_never_gives_a_wrong_frame(tmp_path: Path, b_frames: int) -> None:
    """What a survey cannot see costs the windows that depend on it, with the reason, and no other."""
    whole = make_clip(tmp_path / "whole.mp4", gop=20, b_frames=b_frames)
    path = spoil_payload(whole, tmp_path / "spoilt.mp4", number=25)
    probed, surveyed = probe(str(path)), survey(str(path))
    assert probed.broken is not None
    assert set(probed.times_s) < set(surveyed.times_s)
    windows = [[0, 5, 19], [40, 50, 59], list(range(20, 40))]
    first, second, spoilt = wanted_of(path, surveyed, windows)
    for window in (first, second):
        assert window.error is None
        assert window.frames is not None
        assert [read_index(frame) for frame in window.frames] == windows[window.position]
    assert spoilt.error is not None
    assert ("s" in spoilt.error and "the packet at" in spoilt.error) or "corrupt" in spoilt.error
    # The numbers of a full look count clean frames alone; they are found by their times.
    whole_again = [*range(0, probed.num_frames, 3)]
    [clean] = wanted_of(path, probed, [whole_again])
    assert clean.error is None
    assert np.array_equal(clean.times_s, probed.times_s[whole_again])
    [counted] = read_windows(str(path), [whole_again])
    assert same(clean, counted)


@pytest.mark.parametrize("number", range(16, 32, 3))
def test_a_frame_shown_before_the_damage_that_it_is_predicted_from_is_not_handed_out(
    tmp_path: Path, number: int
) -> None:
    whole = make_clip(tmp_path / "whole.mp4", **HARD["pyramid.mp4"], gop=15, num_frames=45)
    path = spoil_payload(whole, tmp_path / "spoilt.mp4", number=number)
    surveyed = survey(str(path))
    clean = probe(str(path))
    assert surveyed.num_frames == 45
    [true] = read_windows(str(whole), [range(45)])
    [in_order] = read_windows(str(path), [range(clean.num_frames)])
    assert true.frames is not None
    assert in_order.frames is not None
    by_order = dict(zip(in_order.times_s, in_order.frames, strict=True))
    for window in wanted_of(path, surveyed, [[at] for at in range(45)]):
        if window.frames is None:
            continue
        time_s, picture = window.times_s[0], window.frames[0]
        # Damage that the decoder takes for a picture is handed out in order, too.
        assert np.array_equal(picture, by_order.get(time_s, true.frames[window.position]))


def test_frames_of_a_clip_that_changed_are_not_handed_out(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=40)
    info = probe(str(path))
    make_clip(path, num_frames=40, frame_rate=24)
    [window] = wanted_of(path, info, [[0, 10, 39]])
    assert window.frames is None
    assert window.error is not None


@pytest.mark.parametrize(
    "name", ["h264_b_frames.mp4", "h264_vfr.mkv", "vp9.webm", "mpeg4.avi", "edit_list.mp4"]
)
def test_one_reader_tells_the_times_of_windows_and_then_their_frames(clip_folder: Path, name: str) -> None:
    path = made_clip(clip_folder, name)
    info = probe(str(path))
    bounds = [(0, 19), (20, info.num_frames - 1)]
    with FrameReader(str(path)) as reader:
        times = reader.times_s([WindowRange(a, b, info.times_s[a], info.times_s[b]) for a, b in bounds])
        assert np.array_equal(np.concatenate(times), info.times_s)
        numbers = [[3, 9], [20, 41]]
        frames = list(reader.windows(numbers, times_s=[info.times_s[one] for one in numbers]))
    assert all(map(same, frames, read_windows(str(path), numbers)))


@pytest.mark.parametrize("name", ["h264.mp4", "h264_b_frames.mp4", "h264_vfr.mkv", "edit_list.mp4"])
def test_a_window_whose_times_nobody_knows_is_decoded_for_them(clip_folder: Path, name: str) -> None:
    path = made_clip(clip_folder, name)
    info = probe(str(path))
    last = info.num_frames - 1
    with FrameReader(str(path)) as reader:
        [times_s] = reader.times_s([WindowRange(0, last, math.nan, math.nan)])
        assert np.array_equal(times_s, info.times_s)
        [window] = reader.windows([[0, last]], times_s=[times_s[[0, last]]])
    assert same(window, next(read_windows(str(path), [[0, last]])))


def test_each_window_needs_as_many_times_as_frames(clip_folder: Path) -> None:
    path = str(made_clip(clip_folder, "h264.mp4"))
    with pytest.raises(ValueError, match="zip"):
        list(read_windows(path, [[0, 1]], times_s=[[0.0]]))


def test_parameter_sets_on_the_way_are_kept(clip_folder: Path, tmp_path: Path) -> None:
    """Two encodings in one stream: the second needs its own parameter sets."""
    parts = [make_clip(tmp_path / f"{crf}.ts", gop=15, options={"crf": crf}) for crf in ("12", "30")]
    (tmp_path / "list.txt").write_text("".join(f"file '{part.name}'\n" for part in parts))
    path = tmp_path / "both.ts"
    run_ffmpeg("-f", "concat", "-i", tmp_path / "list.txt", "-c", "copy", path)
    info = probe(str(path))
    for window in ([0, 119], [70, 80, 110], [118]):
        [in_order], [wanted] = read_windows(str(path), [window]), wanted_of(path, info, [window])
        assert same(in_order, wanted)


def test_a_clip_is_cut_alike_with_and_without_a_look_at_every_frame(clip_folder: Path) -> None:
    rule = WindowRule(sampling_fps=2.0, window_size=20, remainder_threshold=8)
    for name in ("h264_b_frames.mp4", "edit_list.mp4", "vp8_alt_ref.webm", "vp9.webm", "av1.mkv"):
        clip = ClipRef("id", 0, "content", made_clip(clip_folder, name).read_bytes(), None)
        by_packets = cut_clip(clip, rule, Limits())
        assert cut_clip(clip, rule, Limits(), check_frames=True) == by_packets
        assert len(by_packets) > 1
