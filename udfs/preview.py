"""Previews: a window as a small animated WebP, made by ffmpeg.

The result is that of `ffmpeg -i window.mp4 -vf fps=F,scale=-1:H -c:v libwebp ...`, but ffmpeg is given the
frames that its fps filter would pick, so that nothing is decoded twice and short windows get a frame too.
"""

import math
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from conf.errors import PreviewError
from udfs.ffmpeg import find_ffmpeg
from udfs.orientation import Orientation
from udfs.webp import check_webp

OUTPUT_CHARS = 4000
"""So much of the end of ffmpeg's output goes into an error."""

_TIE = 1e-6
"""Times are differences of floats: what lies this close to a half counts as a half."""


@dataclass(frozen=True)
class PreviewParams:
    """The parameters of the preview stage; the defaults are those of the settings.

    Attributes:
        target_fps: frames per second of the preview.
        target_height: height of the preview in pixels; the width follows.
        compression_level: effort of libwebp, 0 to 6; 0 means lossless.
        quality: quality of libwebp, 0 to 100.
        num_cpus_per_worker: threads of ffmpeg, rounded up.
        verbose: whether the stage logs a line for each window.
    """

    target_fps: float
    target_height: int
    compression_level: int
    quality: int
    num_cpus_per_worker: float
    verbose: bool = False


@dataclass(frozen=True)
class Preview:
    """A finished preview, checked by decoding it.

    Attributes:
        webp: the file.
        width: in pixels.
        height: in pixels.
        num_frames: number of frames, each shown for 1 / target_fps seconds.
    """

    webp: bytes
    width: int
    height: int
    num_frames: int


def preview_frames(times_s: npt.NDArray[np.float64], *, target_fps: float) -> list[int]:
    """Picks the frames of a window that its preview shows, as ffmpeg's fps filter does.

    Preview frame k shows the last frame before k + 0.5 preview periods. The last frame is taken to be
    shown as long as the one before it.

    >>> preview_frames(np.arange(90) / 30, target_fps=1.0)
    [14, 44, 74]

    Args:
        times_s: float64 (n,), presentation times of all frames of the window, ascending.
        target_fps: frames per second of the preview.

    Returns:
        Positions in `times_s`, ascending, at least one; a frame may repeat.
    """
    if len(times_s) == 0:
        raise ValueError("a window without frames has no preview")
    relative = times_s - times_s[0]
    last_shown_s = relative[-1] - relative[-2] if len(times_s) > 1 else 0.0
    num_frames = max(1, _round_half_up((relative[-1] + last_shown_s) * target_fps))
    slots = np.floor(relative * target_fps + 0.5 + _TIE)
    return [int(i) - 1 for i in np.searchsorted(slots, np.arange(num_frames), side="right")]


def _round_half_up(value: float) -> int:
    return math.floor(value + 0.5 + _TIE)


MAX_SIDE = 16_383
"""WebP knows no longer side."""


class PreviewScaler:
    """Renders frames at the size of the preview, so that full-size ones need not travel to ffmpeg."""

    def __init__(self, target_height: int) -> None:
        """Sets the height of the preview in pixels."""
        self._target_height = target_height
        self._scale, self._to_rgb = VideoReformatter(), VideoReformatter()

    def render(self, frame: Any, orientation: Orientation) -> npt.NDArray[np.uint8]:
        """Returns the frame as displayed, scaled; see `udfs.video.Renderer`."""
        width, height = orientation.shown_size(frame.width, frame.height)
        size = scaled_size(width, height, target_height=self._target_height)
        # What no WebP can hold is left to ffmpeg to refuse, in its own words.
        width, height = size if max(size) <= MAX_SIDE else (width, height)
        coded_size = orientation.shown_size(width, height)
        if not frame.format.is_rgb:
            # Scaling and turning to RGB in one step takes twice as long.
            frame = self._scale.reformat(frame, *coded_size, "yuv444p", interpolation="BICUBIC", threads=1)
        scaled: Any = self._to_rgb.reformat(frame, *coded_size, "rgb24", interpolation="BICUBIC", threads=1)
        return orientation.apply(scaled.to_ndarray())


def scaled_size(width: int, height: int, *, target_height: int) -> tuple[int, int]:
    """Returns width and height of a preview, as ffmpeg's `scale=-1:H` rounds them: to odd widths, too.

    >>> scaled_size(854, 480, target_height=240), scaled_size(97, 65, target_height=240)
    ((427, 240), (358, 240))

    Args:
        width: of the displayed frame, in pixels.
        height: of the displayed frame, in pixels.
        target_height: of the preview, in pixels.
    """
    return max(1, (2 * width * target_height + height) // (2 * height)), target_height


def make_preview(
    frames: npt.NDArray[np.uint8], *, settings: PreviewParams, timeout_s: float = 120.0
) -> Preview:
    """Makes a WebP of the frames that `preview_frames` picked; one frame gives a still picture.

    Args:
        frames: uint8 (n, height, width, 3), RGB as displayed, n at least 1; ffmpeg scales what
            `PreviewScaler` has not.
        settings: parameters of the stage.
        timeout_s: ffmpeg is stopped after so many seconds.

    Raises:
        PreviewError: ffmpeg failed (with its command and output), or what it wrote is no proper preview.
        SettingsError: there is no ffmpeg.
        ValueError: the frames have another shape or type.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or not frames.size or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 (n, height, width, 3), not {frames.dtype} {frames.shape}")
    with tempfile.TemporaryDirectory(prefix="captionlake-") as folder:
        path = Path(folder) / "preview.webp"
        command = preview_command(
            find_ffmpeg(), path, width=frames.shape[2], height=frames.shape[1], settings=settings
        )
        output = _run(command, frames, timeout_s=timeout_s)
        webp = path.read_bytes() if path.exists() else b""
    try:
        width, height, num_frames = check_webp(webp, num_frames=len(frames), height=settings.target_height)
    except PreviewError as error:
        raise _error(str(error), command, output) from error
    return Preview(webp, width, height, num_frames)


def preview_command(
    ffmpeg: str, path: Path, *, width: int, height: int, settings: PreviewParams
) -> list[str]:
    """Returns the command that reads raw frames from standard input and writes the WebP to `path`."""
    rate = Fraction(settings.target_fps).limit_denominator(100_000)
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}"]
    source += ["-framerate", f"{rate.numerator}/{rate.denominator}", "-i", "pipe:0"]
    # ffmpeg's level 0 alone is lossy, and only with an RGB format nothing is lost.
    lossless = settings.compression_level == 0
    encoder = ["-c:v", "libwebp", "-pix_fmt", "bgra" if lossless else "yuv420p"]
    encoder += ["-lossless", "1"] if lossless else []
    encoder += ["-compression_level", str(settings.compression_level), "-quality", str(settings.quality)]
    threads = max(1, math.ceil(settings.num_cpus_per_worker))
    return [
        *(ffmpeg, "-hide_banner", "-loglevel", "warning", "-nostdin", "-y"),
        # Else ffmpeg starts a thread for each core of the machine.
        *("-filter_threads", "1", "-protocol_whitelist", "pipe", *source),
        *("-vf", f"scale=-1:{settings.target_height}", "-fps_mode", "passthrough"),
        *(*encoder, "-threads", str(threads), "-loop", "0", "-f", "webp", str(path)),
    ]


def _run(command: list[str], frames: npt.NDArray[np.uint8], *, timeout_s: float) -> str:
    try:
        # A file, since a pipe takes 4 KiB at a time.
        with tempfile.TemporaryFile() as file:
            file.write(np.ascontiguousarray(frames).data)
            file.seek(0)
            done = subprocess.run(
                command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s
            )
    except subprocess.TimeoutExpired as error:
        raise _error(f"ffmpeg took longer than {timeout_s:g} s", command, _text(error.output)) from error
    except OSError as error:
        raise _error(f"ffmpeg cannot be run: {error}", command, "") from error
    if done.returncode != 0:
        raise _error(f"ffmpeg ended with code {done.returncode}", command, _text(done.stdout))
    return _text(done.stdout)


def _text(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace")


def _error(reason: str, command: list[str], output: str) -> PreviewError:
    return PreviewError(f"{reason}\ncommand: {shlex.join(command)}\noutput: {output[-OUTPUT_CHARS:].strip()}")


def preview_warnings(*, frame_rate: float, height: int, settings: PreviewParams) -> list[str]:
    """Returns what is worth a warning about a window whose preview is made all the same.

    Args:
        frame_rate: of the clip, frames per second.
        height: of the clip as displayed, in pixels.
        settings: parameters of the stage.
    """
    warnings = []
    if frame_rate < settings.target_fps:
        warnings.append(f"frame rate {frame_rate:g} is below target_fps {settings.target_fps:g}")
    if height < settings.target_height:
        warnings.append(f"height {height} is below target_height {settings.target_height}")
    return warnings
