"""The clips of the benchmarks: a textured scene that moves, with the frame's number drawn into it.

Flat drawings cost encoders and decoders next to nothing; this one has grain and motion all over.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from demo.drawing import Frame
from demo.make_clips import write_video
from tests.media_maker import CODECS, NUM_BITS

CELL_PX = 24
"""Side of the cell of one bit: small, since a large picture that flickers is like no real one."""

X264_DEFAULTS = {"preset": "medium", "crf": "23", "bf": "3", "threads": "2"}
"""B-frames refer to one another, and key frames are up to 250 frames apart."""

RECORDED = {**X264_DEFAULTS, "g": "30", "b-pyramid": "none"}
"""No picture refers to a B-frame, and each second begins with a key frame: as hardware encoders do it."""

GRAINS = ((128, 60), (32, 35), (8, 18), (2, 6))
"""Size in pixels and strength of the layers of noise that the texture is made of."""


@dataclass(frozen=True)
class Case:
    """One clip.

    Attributes:
        name: of the case.
        num_frames: its length, at 30 frames per second.
        codec: a key of `tests.media_maker.CODECS`.
        size: width and height in pixels.
        options: of the encoder, for H.264.
        grain: standard deviation of the grain of a frame, of 255.
    """

    name: str
    num_frames: int
    codec: str = "h264"
    size: tuple[int, int] = (1280, 720)
    options: Mapping[str, str] = field(default_factory=lambda: X264_DEFAULTS)
    grain: float = 4.0


_LENGTHS = {"10s": 300, "30s": 900, "60s": 1800}
RECORDED_CLIPS = tuple(
    Case(f"h264_{name}", frames, options=RECORDED, grain=8.0) for name, frames in _LENGTHS.items()
)
"""One, four and seven windows of H.264, with the bit rate at which cameras and phones record."""

DEFAULT_CLIPS = tuple(Case(f"x264_{name}", frames) for name, frames in _LENGTHS.items())
"""The same with little grain and x264's defaults: easy to decode, and less of it can be left out."""

MAIN = (*RECORDED_CLIPS, *DEFAULT_CLIPS)

OTHERS = (
    Case("h265_5s", 150, "h265"),
    Case("vp9_5s", 150, "vp9"),
    Case("av1_5s", 150, "av1"),
    Case("h264_no_b_frames", 150, options={**RECORDED, "bf": "0"}, grain=6.4),
    Case("h264_480p", 150, size=(854, 480)),
    Case("h264_1080p", 150, size=(1920, 1080)),
    Case("h264_4k", 150, size=(3840, 2160)),
)
"""One window each."""

SUFFIXES = {"vp9": "webm", "av1": "mkv"}


def make_case(case: Case, folder: Path) -> Path:
    """Writes the clip of a case unless it is there; returns its path."""
    path = folder / f"{case.name}.{SUFFIXES.get(case.codec, 'mp4')}"
    if not path.exists():
        encoder = CODECS[case.codec]
        options = case.options if case.codec == "h264" else encoder["options"]
        part = path.with_name(f"part_{path.name}")
        write_video(part, moving_frames(case), codec=encoder["codec"], options=dict(options))
        part.replace(path)
    return path


def moving_frames(case: Case) -> Iterator[Frame]:
    """Yields the pictures of a case: uint8 (height, width, 3), RGB."""
    width, height = case.size
    texture = _texture(2 * width, 2 * height)
    grain = _grain(width, 2 * height, case.grain)
    side = height // 3
    for number in range(case.num_frames):
        left, top = _swing(number, 60, width), _swing(number, 80, height)
        picture = texture[top : top + height, left : left + width].copy()
        left, top = _swing(number, 25, width - side), _swing(number, 35, height - side)
        picture[top : top + side, left : left + side] = texture[:side, :side]
        # Every frame has its own grain, as a camera's have.
        offset = number * 37 % height
        picture = np.clip(picture + grain[offset : offset + height], 0, 255).astype(np.uint8)
        for bit in range(NUM_BITS):
            picture[:CELL_PX, bit * CELL_PX : (bit + 1) * CELL_PX] = 235 if number >> bit & 1 else 16
        yield picture


def read_number(picture: Frame) -> int:
    """Reads the number that is drawn into a picture of full size."""
    cells = picture[CELL_PX // 3 : CELL_PX * 2 // 3, : NUM_BITS * CELL_PX].mean(axis=(0, 2))
    levels = cells.reshape(NUM_BITS, CELL_PX)[:, CELL_PX // 3 : CELL_PX * 2 // 3].mean(axis=1)
    return sum(int(level > 125) << bit for bit, level in enumerate(levels))


def _swing(number: int, period: int, reach: int) -> int:
    """To and fro between 0 and `reach`."""
    return int(reach * (0.5 + 0.5 * np.sin(number / period)))


def _grain(width: int, height: int, strength: float) -> npt.NDArray[np.int16]:
    return np.random.default_rng(1).normal(0, strength, (height, width, 1)).astype(np.int16)


def _texture(width: int, height: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    texture = np.full((height, width, 3), 120, np.float32)
    for cell, strength in GRAINS:
        shape = (height // cell + 2, width // cell + 2, 3)
        noise = (rng.normal(size=shape) * 40 + 128).clip(0, 255).astype(np.uint8)
        layer = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
        texture += (layer.astype(np.float32) - 128) * (strength / 40)
    clipped: npt.NDArray[np.uint8] = np.clip(texture, 0, 255).astype(np.uint8)
    return clipped
