"""Previews: what ffmpeg's own command shows, also where that command fails."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from conf.errors import PreviewError, SettingsError
from demo.drawing import Frame
from demo.make_clips import draw_scene
from tests.media_maker import make_clip, read_index, run_ffmpeg, uneven_times
from tests.pictures import ssim
from udfs.ffmpeg import check_ffmpeg, find_ffmpeg
from udfs.preview import (
    PreviewParams,
    PreviewScaler,
    make_preview,
    preview_command,
    preview_frames,
    preview_warnings,
)
from udfs.video import probe, read_windows
from udfs.webp import check_webp

DEFAULTS: dict[str, Any] = {
    "target_fps": 1.0,
    "target_height": 240,
    "compression_level": 6,
    "quality": 50,
    "num_cpus_per_worker": 4.0,
}


def params(**changed: Any) -> PreviewParams:
    return PreviewParams(**{**DEFAULTS, **changed})


def pictures(webp: bytes) -> list[Frame]:
    with Image.open(io.BytesIO(webp)) as image:
        frames = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
        return frames


def scene(num_frames: int = 3, size: tuple[int, int] = (320, 240)) -> npt.NDArray[np.uint8]:
    return np.stack([draw_scene(i, num_frames=num_frames, size=size, seed=2) for i in range(num_frames)])


def chunk_names(webp: bytes) -> set[bytes]:
    return {name for name in (b"VP8 ", b"VP8L", b"ANIM", b"ANMF", b"ALPH") if name in webp}


CLIPS: dict[str, dict[str, Any]] = {
    "plain.mp4": {"num_frames": 120},
    "long.mp4": {"num_frames": 250, "frame_rate": 24},
    "half_up.mp4": {"num_frames": 45},
    "half_down.mp4": {"num_frames": 44},
    "b_frames.mp4": {"num_frames": 100, "b_frames": 3},
    "uneven.mp4": {"num_frames": 100, "times_s": uneven_times},
    "slow.mp4": {"num_frames": 7, "frame_rate": 2},
    "wide.mp4": {"num_frames": 60, "size": (854, 480)},
    "upright.mov": {"num_frames": 60, "size": (120, 214), "rotation_deg": 90},
    "vp9.webm": {"num_frames": 60, "codec": "vp9"},
}


@pytest.mark.parametrize("target_fps", [1.0, 2.5])
@pytest.mark.parametrize("name", CLIPS)
def test_a_preview_shows_what_ffmpegs_own_command_shows(tmp_path: Path, name: str, target_fps: float) -> None:
    path = make_clip(tmp_path / name, **CLIPS[name])
    run_ffmpeg("-i", path, "-vf", f"fps={target_fps},scale=-1:240", "-c:v", "libwebp", "-compression_level",
               "6", "-quality", "50", "-loop", "0", tmp_path / "theirs.webp")  # fmt: skip
    theirs = pictures((tmp_path / "theirs.webp").read_bytes())
    picks = preview_frames(probe(str(path)).times_s, target_fps=target_fps)
    [window] = read_windows(str(path), [picks])
    assert window.frames is not None
    preview = make_preview(window.frames, settings=params(target_fps=target_fps))
    ours = pictures(preview.webp)
    assert [read_index(p) for p in ours] == [read_index(p) for p in theirs] == picks
    assert (preview.height, preview.width, 3) == ours[0].shape == theirs[0].shape
    assert preview.num_frames == len(theirs)
    assert min(map(ssim, ours, theirs)) > 0.95


@pytest.mark.parametrize("name", ["wide.mp4", "upright.mov", "vp9.webm", "odd.mp4", "long.mp4"])
def test_frames_scaled_beside_the_decoder_look_like_those_that_ffmpeg_scales(
    tmp_path: Path, name: str
) -> None:
    odd = {"num_frames": 60, "size": (97, 65), "pix_fmt": "yuv444p"}
    path = make_clip(tmp_path / name, **(odd if name.startswith("odd") else CLIPS[name]))
    run_ffmpeg("-i", path, "-vf", "fps=1,scale=-1:240", "-c:v", "libwebp", "-pix_fmt", "yuv420p",
               "-quality", "50", "-loop", "0", tmp_path / "theirs.webp")  # fmt: skip
    theirs = pictures((tmp_path / "theirs.webp").read_bytes())
    picks = preview_frames(probe(str(path)).times_s, target_fps=1.0)
    [window] = read_windows(str(path), [picks], transform=[PreviewScaler(240)])
    assert window.frames is not None
    ours = pictures(make_preview(window.frames, settings=params()).webp)
    assert [read_index(p) for p in ours] == [read_index(p) for p in theirs] == picks
    assert ours[0].shape == theirs[0].shape == window.frames[0].shape
    assert min(map(ssim, ours, theirs)) > 0.95


def test_a_preview_wider_than_a_webp_can_be_is_left_to_ffmpeg_to_refuse(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "flat.mp4", num_frames=5, size=(2048, 16), numbered=False)
    [window] = read_windows(str(path), [[0]], transform=[PreviewScaler(240)])
    assert window.frames is not None
    assert window.frames.shape == (1, 16, 2048, 3)
    with pytest.raises(PreviewError, match="ffmpeg ended"):
        make_preview(window.frames, settings=params())


@pytest.mark.parametrize("num_frames", [1, 4, 14])
def test_a_window_under_half_a_second_still_gets_a_picture(num_frames: int) -> None:
    picks = preview_frames(np.arange(num_frames, dtype=np.float64) / 30, target_fps=1.0)
    assert picks == [num_frames - 1]
    preview = make_preview(scene(1), settings=params())
    assert (preview.num_frames, preview.width, preview.height) == (1, 320, 240)
    assert chunk_names(preview.webp) == {b"VP8 "}


def test_times_count_from_the_start_of_the_window() -> None:
    times_s = np.arange(256, 512) / 30
    assert preview_frames(times_s, target_fps=1.0) == preview_frames(np.arange(256) / 30, target_fps=1.0)
    assert preview_frames(np.arange(4) * 2.0, target_fps=1.0) == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="without frames"):
        preview_frames(np.empty(0), target_fps=1.0)


@pytest.mark.parametrize("target_fps", [1.0, 0.5, 8.0])
def test_the_animation_never_ends_and_keeps_its_pace(target_fps: float) -> None:
    preview = make_preview(scene(3), settings=params(target_fps=target_fps))
    with Image.open(io.BytesIO(preview.webp)) as image:
        assert (getattr(image, "n_frames", 1), image.info["loop"]) == (3, 0)
        for index in range(3):
            image.seek(index)
            image.load()
            assert image.info["duration"] == round(1000 / target_fps)


def test_a_still_scene_keeps_its_number_of_frames() -> None:
    assert make_preview(scene(1).repeat(4, axis=0), settings=params()).num_frames == 4


@pytest.mark.parametrize(("size", "expected"), [((854, 480), (427, 240)), ((97, 65), (358, 240))])
def test_the_width_follows_the_height_even_or_odd(size: tuple[int, int], expected: tuple[int, int]) -> None:
    preview = make_preview(scene(2, size), settings=params())
    assert (preview.width, preview.height) == expected


def test_level_0_loses_nothing() -> None:
    frames = scene(2)
    lossless = make_preview(frames, settings=params(compression_level=0))
    assert b"VP8L" in chunk_names(lossless.webp)
    assert b"VP8 " not in chunk_names(lossless.webp)
    assert np.array_equal(np.stack(pictures(lossless.webp)), frames)
    assert b"VP8L" not in chunk_names(make_preview(frames, settings=params(compression_level=1)).webp)


def test_quality_and_effort_change_the_file() -> None:
    frames = scene(2)
    sizes = [len(make_preview(frames, settings=params(quality=q)).webp) for q in (5, 50, 95)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("cpus", "threads"), [(4.0, "4"), (0.25, "1"), (1.5, "2"), (0.0, "1")])
def test_the_workers_cpus_are_ffmpegs_threads(cpus: float, threads: str) -> None:
    settings = params(num_cpus_per_worker=cpus)
    command = preview_command("ffmpeg", Path("o.webp"), width=4, height=4, settings=settings)
    assert command[command.index("-threads") + 1] == threads


def test_a_failure_carries_the_command_and_what_ffmpeg_said() -> None:
    too_wide = np.zeros((1, 2, 4000, 3), np.uint8)
    with pytest.raises(PreviewError) as caught:
        make_preview(too_wide, settings=params())
    message = str(caught.value)
    assert f"command: {find_ffmpeg()} -hide_banner" in message
    assert "-c:v libwebp" in message
    assert "output: " in message
    assert len(message.split("output: ")[1]) > 20


def test_a_hanging_ffmpeg_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTIONLAKE_FFMPEG", script(tmp_path, "exec sleep 60"))
    with pytest.raises(PreviewError, match=r"longer than 0\.5 s"):
        make_preview(scene(1), settings=params(), timeout_s=0.5)


def test_an_ffmpeg_that_writes_nothing_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONLAKE_FFMPEG", script(tmp_path, "cat > /dev/null; echo all is well"))
    with pytest.raises(PreviewError, match=r"(?s)does not decode.*all is well"):
        make_preview(scene(1), settings=params())


def script(folder: Path, body: str) -> str:
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("body", ["exit 3", "echo ' V..... libx264 H.264'", None])
def test_an_ffmpeg_that_cannot_make_webp_is_refused_with_how_to_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str | None
) -> None:
    named = script(tmp_path, body) if body else str(tmp_path / "nowhere")
    monkeypatch.setenv("CAPTIONLAKE_FFMPEG", named)
    assert find_ffmpeg() == named
    with pytest.raises(SettingsError, match=r"CAPTIONLAKE_FFMPEG.*pip install imageio-ffmpeg"):
        check_ffmpeg()


def test_the_packaged_ffmpeg_can_make_webp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPTIONLAKE_FFMPEG", raising=False)
    assert Path(check_ffmpeg()).is_file()


def test_a_wrong_file_is_not_accepted_as_a_preview() -> None:
    webp = make_preview(scene(2), settings=params()).webp
    assert check_webp(webp, num_frames=2, height=240) == (320, 240, 2)
    for expected, wrong in [
        ("3", {"num_frames": 3, "height": 240}),
        ("241 ", {"num_frames": 2, "height": 241}),
    ]:
        with pytest.raises(PreviewError, match=f"instead of {expected.strip()}"):
            check_webp(webp, **wrong)
    with pytest.raises(PreviewError, match="does not decode"):
        check_webp(webp[: len(webp) // 2], num_frames=2, height=240)


def test_slow_or_small_clips_are_warned_about() -> None:
    assert preview_warnings(frame_rate=30.0, height=240, settings=params()) == []
    slow, small = preview_warnings(frame_rate=0.5, height=239, settings=params())
    assert ("0.5" in slow, "target_fps" in slow) == (True, True)
    assert ("239" in small, "target_height" in small) == (True, True)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 4), (2, 4, 4, 1)])
def test_frames_of_another_shape_are_a_bug_of_the_caller(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="frames must be uint8"):
        make_preview(np.zeros(shape, np.uint8), settings=params())
