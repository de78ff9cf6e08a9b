"""The mp4 of a window: its frames at its times, decoded again and compared with the clip's."""

from pathlib import Path

import numpy as np
import pytest

from tests import media_maker
from tests.udfs.media import MADE, REAL, made_clip, plain_decode, real_clip
from udfs.video import VideoInfo, WindowRange, probe
from udfs.window_mp4 import WindowMp4, cut_mp4s

FRAMES = 23
"""Of a window; no divisor of any clip's length, so that windows begin between key frames."""


@pytest.fixture(params=["sintel_10s.mp4", "nasa_13013_rotated.mp4", "corrupted.mp4", *MADE])
def clip(request: pytest.FixtureRequest, clip_folder: Path) -> Path:
    name: str = request.param
    return real_clip(name) if name in REAL else made_clip(clip_folder, name)


def ranges_of(info: VideoInfo, frames: int = FRAMES) -> list[WindowRange]:
    starts = range(0, info.num_frames - frames + 1, frames)
    return [
        WindowRange(at, at + frames - 1, float(info.times_s[at]), float(info.times_s[at + frames - 1]))
        for at in starts
    ]


def test_an_mp4_holds_the_frames_of_its_window_at_their_times(clip: Path, tmp_path: Path) -> None:
    info = probe(str(clip))
    ranges = ranges_of(info)[:4]
    made = list(cut_mp4s(str(clip), ranges))
    assert [one.position for one in made] == list(range(len(ranges)))
    if info.broken is None:
        source = list(plain_decode(clip))
    for one, window in zip(made, ranges, strict=True):
        assert one.error is None
        assert one.mp4 is not None
        path = tmp_path / f"{one.position}.mp4"
        path.write_bytes(one.mp4)
        again = list(plain_decode(path))
        assert len(again) == one.num_frames == FRAMES
        assert (one.width, one.height) == (info.width // 2 * 2, info.height // 2 * 2)
        times_s = info.times_s[window.start_frame : window.end_frame + 1]
        np.testing.assert_allclose([time for time, _ in again], times_s - times_s[0], atol=1e-3)
        if info.broken is None:
            for (_, picture), (_, expected) in zip(again, source[window.start_frame :], strict=False):
                shown = expected[: picture.shape[0], : picture.shape[1]].astype(np.int16)
                assert picture.shape == shown.shape
                assert np.abs(picture - shown).mean() < 6


def test_a_window_that_lacks_frames_gets_a_reason_and_the_others_their_mp4(tmp_path: Path) -> None:
    whole = media_maker.make_clip(tmp_path / "whole.ts", num_frames=60, seed=3)
    ranges = ranges_of(probe(str(whole)), 20)
    cut_off = media_maker.truncate(whole, tmp_path / "cut_off.ts", keep=0.6)
    made = list(cut_mp4s(str(cut_off), ranges))
    assert made[0].mp4 is not None
    assert made[-1] == WindowMp4(2, error=made[-1].error)
    assert "of 20 frames can be decoded" in (made[-1].error or "")


@pytest.mark.parametrize("content", [b"", b"no video"])
def test_what_cannot_be_opened_gives_every_window_its_reason(content: bytes) -> None:
    made = list(cut_mp4s(content, [WindowRange(0, 3, 0.0, 0.1), WindowRange(4, 7, 0.2, 0.3)]))
    assert [(one.position, one.mp4) for one in made] == [(0, None), (1, None)]
    assert all(one.error for one in made)


def test_windows_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="in order"):
        list(cut_mp4s(b"", [WindowRange(4, 7, 0.2, 0.3), WindowRange(0, 4, 0.0, 0.2)]))
