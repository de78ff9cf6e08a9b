"""The peer's way to windows, frames and previews, written from its description.

It probes a clip, decodes all of it for the frames that the model sees, cuts an mp4 for every window with a
`select` filter (unless the clip is one window), and makes every preview from the window's mp4. Where the
description leaves room, the cheaper reading is taken: frames are converted and resized only when sampled.
"""

import shlex
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from benchmarks.moving_clips import read_number
from conf.variants import QWEN25
from udfs.ffmpeg import find_ffmpeg
from udfs.resize import fit_size, resize_frame
from udfs.windowing import PlannedWindow, plan_windows

ENCODERS = {"x264": "libx264", "openh264": "libopenh264"}


@dataclass
class PeerResult:
    """What came out, and the commands that made it.

    Attributes:
        numbers: for each window the numbers drawn into the sampled frames, read before resizing.
        previews: the WebP of each window.
        commands: as they could be typed.
    """

    numbers: list[list[int]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def run_peer(path: Path, encoder: str) -> PeerResult:
    """Does all that the peer does with one clip.

    Args:
        path: the clip.
        encoder: a key of `ENCODERS`, for the mp4 of a window.
    """
    result = PeerResult()
    windows = _probe(path)
    result.numbers = _frames(path, windows)
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        for at, window in enumerate(windows):
            cut = path
            if len(windows) > 1:
                cut = Path(folder) / f"{at}.mp4"
                _run(cut_command(path, cut, window, encoder), result)
            webp = Path(folder) / f"{at}.webp"
            _run(preview_command(cut, webp), result)
            result.previews.append(webp.read_bytes())
    return result


def _probe(path: Path) -> list[PlannedWindow]:
    with av.open(str(path)) as container:
        stream: Any = container.streams.best("video")
        rate = float(stream.average_rate)
        count = stream.frames or round(float((container.duration or 0) / 1_000_000) * rate)
    return plan_windows(count, rate)


def _frames(path: Path, windows: list[PlannedWindow]) -> list[list[int]]:
    """Decodes everything and resizes what is sampled."""
    wanted: dict[int, list[int]] = {}
    for at, window in enumerate(windows):
        for index in window.frame_indices:
            wanted.setdefault(int(index), []).append(at)
    numbers: list[list[int]] = [[] for _ in windows]
    kept: list[list[np.ndarray[Any, Any]]] = [[] for _ in windows]
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(container.streams.best("video"))):
            for at in wanted.get(number, []):
                picture = frame.to_ndarray(format="rgb24")
                numbers[at].append(read_number(picture))
                num_frames = len(windows[at].frame_indices)
                size = fit_size(*picture.shape[:2], num_frames=num_frames, variant=QWEN25)
                kept[at].append(resize_frame(picture, *size))
    for frames in kept:
        np.stack(frames)
    return numbers


def cut_command(path: Path, cut: Path, window: PlannedWindow, encoder: str) -> list[str]:
    """The command that cuts the mp4 of a window."""
    select = f"select='between(n\\,{window.start_frame}\\,{window.end_frame})',setpts=PTS-STARTPTS"
    return [
        *(find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-i", str(path)),
        *("-vf", select, "-c:v", ENCODERS[encoder], "-an", str(cut)),
    ]


def preview_command(cut: Path, webp: Path) -> list[str]:
    """The command that makes a preview, with the stage's defaults."""
    return [
        *(find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-i", str(cut)),
        *("-vf", "fps=1.0,scale=-1:240", "-c:v", "libwebp", "-lossless", "0", "-compression_level", "6"),
        *("-q:v", "50", "-loop", "0", "-threads", "4", str(webp)),
    ]


def _run(command: list[str], result: PeerResult) -> None:
    result.commands.append(shlex.join(command))
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=1200)


def check_peer(result: PeerResult, path: Path) -> None:
    """Raises AssertionError unless the peer showed the model the frames that its windows name."""
    for window, numbers in zip(_probe(path), result.numbers, strict=True):
        assert numbers == [int(i) for i in window.frame_indices]
    for webp in result.previews:
        assert webp[:4] == b"RIFF"
        with tempfile.NamedTemporaryFile(suffix=".webp") as file:
            file.write(webp)
            file.flush()
            with Image.open(file.name) as image:
                assert getattr(image, "n_frames", 1) > 1
