"""Sound clips: the frames and times handed to the model are those of decoding everything in order."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from demo.drawing import Frame
from tests.media_maker import make_clip, read_index, uneven_times
from tests.udfs.media import MADE, REAL, ffmpeg_decode, made_clip, plain_decode, real_clip
from udfs.video import probe, read_windows

SOUND = [name for name in REAL if name != "corrupted.mp4"]


@pytest.fixture(params=[*SOUND, *MADE])
def clip(request: pytest.FixtureRequest, clip_folder: Path) -> Path:
    name: str = request.param
    return made_clip(clip_folder, name) if name in MADE else real_clip(name)


def read_all(path: Path, num_frames: int) -> Iterator[tuple[float, Frame]]:
    """Every frame by way of `read_windows`, in short windows so that long clips fit in memory."""
    windows = [list(range(i, min(i + 16, num_frames))) for i in range(0, num_frames, 16)]
    for expected, window in enumerate(read_windows(str(path), windows)):
        assert (window.position, window.error) == (expected, None)
        assert window.frames is not None
        yield from zip(window.times_s, window.frames, strict=True)


def test_frames_and_times_are_those_of_decoding_everything_in_order(clip: Path) -> None:
    info = probe(str(clip))
    plain = plain_decode(clip)
    for (time_s, picture), (plain_time, plain_picture) in zip(
        read_all(clip, info.num_frames), plain, strict=True
    ):
        assert time_s == plain_time
        assert np.array_equal(picture, plain_picture)
    assert info.broken is None
    assert np.all(np.diff(info.times_s) > 0)


def test_frames_are_those_that_the_ffmpeg_program_shows(clip: Path) -> None:
    info = probe(str(clip))
    shown = ffmpeg_decode(clip, (info.width, info.height))
    for (_, picture), expected in zip(read_all(clip, info.num_frames), shown, strict=True):
        # Chroma is interpolated in another way, so that edges differ a little.
        assert np.abs(picture.astype(np.int16) - expected).mean() < 3


@pytest.mark.parametrize("name", MADE)
def test_every_picture_carries_its_number_upright(clip_folder: Path, name: str) -> None:
    path = made_clip(clip_folder, name)
    info = probe(str(path))
    numbers = [read_index(picture) for _, picture in read_all(path, info.num_frames)]
    first = 60 - info.num_frames
    assert first == (15 if name == "edit_list.mp4" else 0)
    assert numbers == list(range(first, 60))
    assert (
        info.frame_rate == pytest.approx(float(MADE[name].get("frame_rate", 30)), rel=1e-6) or "vfr" in name
    )
    assert (info.width, info.height) == MADE[name].get("size", (96, 64))


@pytest.mark.parametrize("name", ["h264_vfr.mp4", "h264_vfr.mkv"])
def test_uneven_times_are_told_as_they_are(clip_folder: Path, name: str) -> None:
    times_s = probe(str(made_clip(clip_folder, name))).times_s
    assert times_s == pytest.approx([uneven_times(i) for i in range(60)], abs=0.0006)


def test_a_late_start_is_kept(clip_folder: Path) -> None:
    times_s = probe(str(made_clip(clip_folder, "h264_late_start.mp4"))).times_s
    assert times_s[0] == pytest.approx(5.5, abs=0.001)
    assert probe(str(real_clip("test_non_zero_start.mp4"))).times_s[0] == pytest.approx(8.333, abs=0.001)


@pytest.mark.parametrize(
    ("name", "size", "codec", "rotation_deg", "num_frames", "rate"),
    [
        ("sintel_10s.mp4", (854, 480), "h264", 0, 240, 24.0),
        ("nasa_13013_rotated.mp4", (270, 480), "h264", 90, 17, 30000 / 1001),
        ("video_90.mov", (320, 568), "h264", 270, 3, 30.0),
        ("pancake.mkv", (426, 240), "h264", 0, 310, 30.0),
        ("discard_first_keyframe.mp4", (64, 64), "h264", 0, 25, 25.0),
        ("av1_video.mkv", (640, 360), "av1", 0, 125, 25.0),
        ("h265_video.mp4", (128, 128), "hevc", 0, 10, 10.0),
        ("testsrc2_odd_height_and_width_vp9.mp4", (321, 241), "vp9", 0, 25, 25.0),
        ("testsrc2_mpeg4.avi", (1280, 720), "mpeg4", 0, 30, 30.0),
        # Two video streams: the larger one, as ffmpeg picks it.
        ("nasa_13013.mp4", (480, 270), "h264", 0, 390, 30000 / 1001),
    ],
)
def test_a_clip_is_described_as_it_is_displayed(
    name: str, size: tuple[int, int], codec: str, rotation_deg: int, num_frames: int, rate: float
) -> None:
    info = probe(str(real_clip(name)))
    assert (info.width, info.height, info.codec) == (*size, codec)
    assert (info.rotation_deg, info.num_frames) == (rotation_deg, num_frames)
    assert info.frame_rate == pytest.approx(rate)


def test_windows_may_overlap_repeat_frames_and_come_in_any_order(clip_folder: Path) -> None:
    path = made_clip(clip_folder, "h264_b_frames.mp4")
    windows = [[40, 59], [0, 5, 5, 9], [7, 8, 40], [5]]
    results = list(read_windows(path.read_bytes(), windows))
    assert [r.position for r in results] == [3, 1, 2, 0]
    for result in results:
        assert result.frames is not None
        assert [read_index(f) for f in result.frames] == windows[result.position]
        assert result.times_s == pytest.approx([i / 30 for i in windows[result.position]])


def test_a_window_beyond_the_end_fails_alone(clip_folder: Path) -> None:
    path = made_clip(clip_folder, "h264.mp4")
    results = {r.position: r for r in read_windows(str(path), [[58, 60], [3, 59]])}
    assert sorted(results) == [0, 1]
    assert results[0].error is not None
    assert "ends before" in results[0].error
    assert results[0].frames is None
    assert results[1].frames is not None


def test_each_window_gets_its_own_transform(clip_folder: Path) -> None:
    calls: list[int] = []

    def half(picture: Frame) -> Frame:
        calls.append(read_index(picture))
        return picture[::2, ::2]

    path = made_clip(clip_folder, "h264.mp4")
    results = list(read_windows(str(path), [[0, 4, 4], [4, 6], [6]], transform=[half, half, None]))
    shapes = {r.position: r.frames.shape for r in results if r.frames is not None}
    assert shapes == {0: (3, 32, 48, 3), 1: (2, 32, 48, 3), 2: (1, 64, 96, 3)}
    assert calls == [0, 4, 6]


def test_pictures_written_into_their_window_are_those_of_a_copy(clip_folder: Path) -> None:
    class Half:
        """Writes to the place that it is given."""

        def resize(self, picture: Frame, out: Frame | None) -> Frame:
            if out is None:
                return picture[::2, ::2]
            out[:] = picture[::2, ::2]
            return out

    def half(picture: Frame) -> Frame:
        return picture[::2, ::2]

    path, shared = made_clip(clip_folder, "h264.mp4"), Half()
    windows = [[0, 4, 4, 5, 9, 9], [4, 5], [3, 5]]
    placed = {r.position: r for r in read_windows(str(path), windows, transform=[Half(), shared, shared])}
    copied = {r.position: r for r in read_windows(str(path), windows, transform=half)}
    assert sorted(placed) == sorted(copied) == [0, 1, 2]
    for position, result in copied.items():
        np.testing.assert_array_equal(placed[position].frames, result.frames)
        np.testing.assert_array_equal(placed[position].times_s, result.times_s)


def test_bytes_path_and_file_read_the_same_twice(clip_folder: Path) -> None:
    path = made_clip(clip_folder, "h264_audio.mp4")
    file = io.BytesIO(path.read_bytes())
    for source in (path.read_bytes(), str(path), file, file):
        assert probe(source).num_frames == 60
        [window] = read_windows(source, [[31]])
        assert window.frames is not None
        assert read_index(window.frames[0]) == 31


def test_odd_file_names_are_no_patterns_or_protocols(tmp_path: Path) -> None:
    for name in ["a%03d.mp4", "concat:b.mp4", "ü #?.mp4"]:
        assert probe(str(make_clip(tmp_path / "x.mp4", num_frames=5).rename(tmp_path / name))).num_frames == 5


@pytest.mark.parametrize("wrong", [[[3, 1]], [[-1, 2]], [[]]])
def test_frame_numbers_that_make_no_sense_are_a_bug_of_the_caller(
    clip_folder: Path, wrong: list[list[int]]
) -> None:
    with pytest.raises(ValueError, match="window 0"):
        list(read_windows(str(made_clip(clip_folder, "h264.mp4")), wrong))


def test_a_clip_that_changes_size_keeps_the_size_of_its_first_frame(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{w}.h264", num_frames=10, size=(w, w), b_frames=2) for w in (96, 64)]
    data = b"".join(part.read_bytes() for part in parts)
    info = probe(data)
    assert (info.num_frames, info.width, info.height) == (20, 96, 96)
    [window] = read_windows(data, [range(20)])
    assert window.frames is not None
    assert window.frames.shape == (20, 96, 96, 3)
    assert [read_index(picture) for picture in window.frames] == [*range(10), *range(10)]
