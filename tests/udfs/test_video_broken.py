"""Damaged and hostile files: what is sound is used, the rest is named, and no other file is read."""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conf.errors import ClipError
from demo.drawing import Frame
from tests import media_maker
from tests.media_maker import make_clip, read_index, spoil_packet, truncate
from tests.udfs.media import real_clip
from udfs.video import Limits, VideoInfo, probe, read_windows

GOP = 20


def numbers(path: Path, info: VideoInfo) -> list[int]:
    """The numbers drawn in all frames, read in two windows that must agree with the probed count."""
    half = info.num_frames // 2
    windows = [list(range(half)), list(range(half, info.num_frames))]
    results = list(read_windows(str(path), windows))
    assert [r.error for r in results] == [None, None]
    frames = [frame for r in results if r.frames is not None for frame in r.frames]
    assert np.array_equal(np.concatenate([r.times_s for r in results]), info.times_s)
    return [read_index(frame) for frame in frames]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(("codec", "b_frames"), [("h264", 0), ("h264", 3), ("h265", 3)])
def test_a_spoilt_packet_costs_its_group_of_pictures_and_nothing_else(
    tmp_path: Path, suffix: str, codec: str, b_frames: int
) -> None:
    whole = make_clip(tmp_path / f"whole.{suffix}", codec=codec, gop=GOP, b_frames=b_frames)
    path = spoil_packet(whole, tmp_path / f"spoilt.{suffix}", number=29)
    info = probe(str(path))
    got = numbers(path, info)
    missing = sorted(set(range(60)) - set(got))
    assert got == sorted(got)
    assert missing
    assert set(missing) <= set(range(20, 40))
    assert info.times_s == pytest.approx(probe(str(whole)).times_s[got])
    # Matroska's demuxer finds its way to the next cluster without a word.
    assert info.broken is not None or suffix == "mkv"


@pytest.mark.parametrize("number", [21, 25, 33])
def test_frames_predicted_from_a_spoilt_one_are_not_handed_out(tmp_path: Path, number: int) -> None:
    whole = make_clip(tmp_path / "whole.mp4", gop=GOP)
    path = spoil_packet(whole, tmp_path / "spoilt.mp4", number=number)
    info = probe(str(path))
    assert numbers(path, info) == [*range(number), *range(40, 60)]
    assert info.broken is not None
    assert f"{number / 30:.3f} s" in info.broken


def test_the_corrupt_real_clip_keeps_its_sound_start() -> None:
    info = probe(str(real_clip("corrupted.mp4")))
    assert 28 <= info.num_frames <= 30
    assert info.broken is not None
    assert "3.0" in info.broken
    assert np.array_equal(info.times_s, np.arange(info.num_frames) / 10)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {"container_options": {"movflags": "faststart"}}),
        ("a.mkv", {}),
        ("a.webm", {"codec": "vp9"}),
        ("fragmented.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    ],
)
def test_a_clip_cut_off_gives_its_start_and_says_so(
    tmp_path: Path, name: str, how: dict[str, object]
) -> None:
    whole = make_clip(tmp_path / f"whole_{name}", gop=10, **how)  # type: ignore[arg-type]
    path = truncate(whole, tmp_path / name, keep=0.6)
    info = probe(str(path))
    got = numbers(path, info)
    assert 20 < len(got) < 50
    assert got == list(range(len(got)))
    assert info.broken is not None


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.01])
def test_an_mp4_without_its_index_is_refused_with_the_reason(tmp_path: Path, keep: float) -> None:
    path = truncate(make_clip(tmp_path / "whole.mp4"), tmp_path / "cut.mp4", keep=keep)
    with pytest.raises(ClipError, match="cut off"):
        probe(str(path))


def test_noise_anywhere_never_raises_anything_but_a_row_error(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mkv", gop=10, b_frames=2, num_frames=40).read_bytes()
    rng = np.random.default_rng(7)
    for _ in range(40):
        data = bytearray(whole)
        start = int(rng.integers(0, len(data) - 200))
        data[start : start + 200] = rng.bytes(200)
        try:
            info = probe(bytes(data))
        except ClipError:
            continue
        assert np.all(np.diff(info.times_s) > 0)
        [window] = read_windows(bytes(data), [range(info.num_frames)])
        assert window.error is None
        assert np.array_equal(window.times_s, info.times_s)


def test_a_window_lost_to_damage_says_where_the_clip_broke(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", gop=60)
    path = spoil_packet(whole, tmp_path / "spoilt.mp4", number=30)
    results = {r.position: r for r in read_windows(str(path), [[0, 10], [10, 40]])}
    assert results[0].error is None
    assert results[1].error is not None
    assert "1.000 s" in results[1].error


def not_videos(folder: Path) -> dict[str, tuple[Path, str]]:
    target = make_clip(folder / "target.mp4", num_frames=5)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video, only words\n" * 100)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    media_maker.make_audio_only(folder / "sound.m4a")
    media_maker.make_playlist(folder / "playlist.mp4", target)
    media_maker.make_concat_script(folder / "script.mp4", target)
    return {
        "empty": (folder / "empty.mp4", "0 bytes"),
        "text": (folder / "text.mp4", "not a video|allowed container"),
        "noise": (folder / "noise.mp4", "not a video|allowed container|no video stream"),
        "sound": (folder / "sound.m4a", "no video stream"),
        "playlist": (folder / "playlist.mp4", "not a video|allowed container"),
        "script": (folder / "script.mp4", "allowed container"),
        "missing": (folder / "missing.mp4", "No such file"),
        "folder": (folder, "directory"),
    }


@pytest.mark.parametrize(
    "kind", ["empty", "text", "noise", "sound", "playlist", "script", "missing", "folder"]
)
def test_what_is_no_video_is_refused_with_a_reason_a_person_can_act_on(tmp_path: Path, kind: str) -> None:
    path, reason = not_videos(tmp_path)[kind]
    with pytest.raises(ClipError, match=reason):
        probe(str(path))
    results = list(read_windows(str(path), [[0, 1], [2]]))
    assert sorted(r.position for r in results) == [0, 1]
    assert all(r.error and r.frames is None for r in results)


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    cover, song = tmp_path / "cover.png", media_maker.make_audio_only(tmp_path / "song.m4a")
    media_maker.run_ffmpeg("-f", "lavfi", "-i", "color=red:s=64x64", "-frames:v", "1", cover)
    path = tmp_path / "song_with_cover.m4a"
    media_maker.run_ffmpeg("-i", song, "-i", cover, "-map", "0", "-map", "1", "-c:a", "copy", "-c:v", "png",
                           "-disposition:v:0", "attached_pic", path)  # fmt: skip
    with pytest.raises(ClipError, match="no video stream"):
        probe(str(path))


@pytest.mark.parametrize("make", [media_maker.make_playlist, media_maker.make_concat_script])
def test_a_file_that_points_at_another_never_opens_it(
    tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    # Opening a pipe for reading would block for ever, so that touching it would show.
    os.mkfifo(tmp_path / "secret.mp4")
    for name in ["clip.mp4", "clip.m3u8", "clip.ffconcat"]:
        path = make(tmp_path / name, tmp_path / "secret.mp4")
        start = time.monotonic()
        for source in (str(path), path.read_bytes()):
            with pytest.raises(ClipError):
                probe(source)
        assert time.monotonic() - start < 60


def test_pictures_above_the_limit_are_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=5)
    with pytest.raises(ClipError, match="96x64 are above the limit of 6143 pixels"):
        probe(str(path), Limits(max_pixels=96 * 64 - 1))
    assert probe(str(path), Limits(max_pixels=96 * 64)).num_frames == 5


def test_a_window_too_large_for_memory_fails_alone(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=20)
    limits = Limits(max_window_bytes=4 * 96 * 64 * 3)
    results = {r.position: r for r in read_windows(str(path), [range(4), range(5)], limits=limits)}
    assert results[0].error is None
    assert results[1].error is not None
    assert "lower sampling_fps or window_size" in results[1].error


def test_time_is_limited_but_not_that_of_the_caller(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=60)

    def slow(picture: Frame) -> Frame:
        time.sleep(0.15)
        return picture

    with pytest.raises(ClipError, match="longer than 0 s"):
        probe(str(path), Limits(max_seconds=0.0))
    results = list(read_windows(str(path), [[0], [50]], transform=slow, limits=Limits(max_seconds=0.1)))
    assert sorted(r.position for r in results) == [0, 1]
    assert results[-1].error is not None
    assert "longer than 0.1 s" in results[-1].error
    patient = read_windows(str(path), [[0], [50]], limits=Limits(max_seconds=2.0))
    first = next(patient)
    time.sleep(2.2)
    assert (first.error, next(patient).error) == (None, None)


def test_a_file_that_fails_while_being_read_is_a_row_error(tmp_path: Path) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 10_000:
                raise OSError("connection lost")
            return super().read(size)

    data = make_clip(tmp_path / "a.mkv", size=(320, 240), num_frames=60).read_bytes()
    assert len(data) > 60_000
    [window] = read_windows(Failing(data), [[0, 59]])
    assert window.error is not None
    assert "connection lost" in window.error
