"""The media that the tests of `udfs` share, and two independent ways to decode them in order."""

import os
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest

from demo.drawing import Frame
from tests import media_maker

MEDIA = Path(__file__).parents[3] / "shared" / "media"

REAL = [
    "av1_video.mkv",
    "corrupted.mp4",
    "discard_first_keyframe.mp4",
    "gradient.gif",
    "h264_10bits.mp4",
    "h265_video.mp4",
    "nasa_13013.mp4",
    "nasa_13013_rotated.mp4",
    "pancake.mkv",
    "sintel_10s.mp4",
    "sintel_30s.mp4",
    "test_non_zero_start.mp4",
    "testsrc2_mpeg4.avi",
    "testsrc2_odd_height_and_width_vp9.mp4",
    "testsrc2_vp9.webm",
    "tiny.mp4",
    "unordered.mov",
    "video_90.mov",
]

FRAGMENTED = {"container_options": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}}
TEN_BIT = {"pix_fmt": "yuv420p10le"}
VFR: dict[str, Any] = {"times_s": media_maker.uneven_times, "b_frames": 2}

MADE: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264_b_frames.mp4": {"b_frames": 3},
    "h264_b_frames.mkv": {"b_frames": 3},
    "h264_b_frames.ts": {"b_frames": 3},
    "h264_b_frames.flv": {"b_frames": 2},
    "h264_open_gop.mp4": {"b_frames": 3, "options": {"x264-params": "open-gop=1", "preset": "fast"}},
    "h264_interlaced.mp4": {"options": {"flags": "+ildct+ilme"}},
    "h264_444.mp4": {"pix_fmt": "yuv444p"},
    "h264_10bit.mp4": TEN_BIT,
    "h264_odd.mp4": {"pix_fmt": "yuv444p", "size": (97, 65)},
    "h264_audio.mp4": {"audio": True},
    "h264_fragmented.mp4": {**FRAGMENTED, "b_frames": 2},
    "h264_vfr.mp4": VFR,
    "h264_vfr.mkv": VFR,
    "h264_ntsc.mov": {"frame_rate": Fraction(30000, 1001)},
    "h264_late_start.mp4": {"times_s": lambda i: 5.5 + i / 30, "b_frames": 2},
    "h264_rotated_90.mov": {"rotation_deg": 90},
    "h264_rotated_180.mp4": {"rotation_deg": 180},
    "h264_rotated_270.mp4": {"rotation_deg": 270, "b_frames": 2},
    "h265_b_frames.mp4": {"codec": "h265", "b_frames": 3},
    "h265_10bit.mkv": {"codec": "h265", **TEN_BIT},
    "vp9.webm": {"codec": "vp9"},
    "vp9_odd.webm": {"codec": "vp9", "size": (97, 65)},
    "vp8.webm": {"codec": "vp8"},
    "vp8_alt_ref.webm": {"maker": partial(media_maker.make_two_pass_clip, encoder="libvpx")},
    "vp9_alt_ref.webm": {"maker": partial(media_maker.make_two_pass_clip, encoder="libvpx-vp9")},
    "vp9_alt_ref.mp4": {"maker": partial(media_maker.make_two_pass_clip, encoder="libvpx-vp9")},
    "av1.mkv": {"codec": "av1"},
    "av1.mp4": {"codec": "av1"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_b_frames.avi": {"codec": "mpeg4", "b_frames": 2},
    "edit_list.mp4": {"b_frames": 2, "maker": partial(media_maker.make_edit_list_clip, skip_s=0.5)},
}
"""Clips by name, with what `make_clip` is told; all hold their frames 0 to 59, the edit list fewer."""


def real_clip(name: str) -> Path:
    """Returns a file of the shared media; skips the test where they are absent, but never under CI."""
    if not MEDIA.is_dir():
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{MEDIA} is missing, and under CI it has to be there")
        pytest.skip(f"the shared media are not there: {MEDIA}")
    return MEDIA / name


def made_clip(folder: Path, name: str) -> Path:
    """Returns a clip of `MADE`, made on first use."""
    path = folder / name
    if not path.exists():
        how = dict(MADE[name])
        maker = how.pop("maker", media_maker.make_clip)
        maker(path, **how)
    return path


def plain_decode(path: Path) -> Iterator[tuple[float, Frame]]:
    """Decodes everything in order with PyAV and nothing else, turned as displayed: times and pictures."""
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.best("video")):
            assert frame.time is not None
            picture = frame.to_ndarray(format="rgb24")
            yield frame.time, np.rot90(picture, frame.rotation // 90)


def ffmpeg_decode(path: Path, size: tuple[int, int]) -> Iterator[Frame]:
    """Decodes everything in order with the ffmpeg program, whose own autorotation turns the pictures."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(path)]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    width, height = size
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while data := process.stdout.read(width * height * 3):
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
