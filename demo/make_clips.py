"""Makes the sample clips of the demo: coloured shapes that move over a background.

`python -m demo.make_clips FOLDER` writes a handful of small clips in several containers and codecs. The
tests write their clips with the same functions.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from demo.drawing import Frame, Range, Staging, stage
from demo.stories import Actor, Story

TIME_BASE = Fraction(1, 90_000)
SAMPLE_RATE = 16_000

SKIES = [(30, 60, 110), (70, 35, 90), (20, 90, 80), (110, 70, 30), (60, 60, 70), (25, 100, 40)]
PAINTS = [(240, 90, 70), (250, 200, 60), (90, 220, 130), (110, 180, 250), (240, 140, 220), (245, 245, 235)]
SHAPES = ["disc", "square", "diamond", "ring"]


def draw_scene(index: int, *, num_frames: int, size: tuple[int, int], seed: int) -> Frame:
    """Draws frame `index` of a scene; the seed picks background, shape, colour and path.

    Args:
        index: number of the frame, from 0.
        num_frames: frames of the whole scene: the shape crosses the picture in that time.
        size: width and height in pixels.
        seed: which scene.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    width, height = size
    progress = index / max(1, num_frames - 1)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    sky = np.array(SKIES[seed % len(SKIES)], np.float32)
    waves = 14 * np.sin(x / width * 9 + seed) * np.cos(y / height * 7 - 3 * progress)
    picture = sky * (0.7 + 0.8 * y / height)[..., None] + waves[..., None]
    inside = _shape_mask(x, y, progress, seed=seed)
    picture[inside] = PAINTS[(seed * 5 + 1) % len(PAINTS)]
    clipped: Frame = np.clip(picture, 0, 255).astype(np.uint8)
    return clipped


def _shape_mask(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], progress: float, *, seed: int) -> Any:
    height, width = x.shape
    radius = height * (0.14 + 0.03 * (seed % 4))
    start_x, end_x = (0.1, 0.9) if seed % 2 == 0 else (0.9, 0.1)
    dx = x - width * (start_x + (end_x - start_x) * progress)
    dy = y - height * (0.5 + 0.28 * np.sin(2 * np.pi * progress * (1 + seed % 3) + seed))
    match SHAPES[seed % len(SHAPES)]:
        case "disc":
            return np.hypot(dx, dy) < radius
        case "square":
            return np.maximum(abs(dx), abs(dy)) < radius
        case "diamond":
            return abs(dx) + abs(dy) < 1.3 * radius
        case _:
            return abs(np.hypot(dx, dy) - radius) < 0.3 * radius


def write_video(
    path: Path,
    frames: Iterable[Frame],
    *,
    frame_rate: Fraction | int = 30,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    times_s: Callable[[int], float] | None = None,
    rotation_deg: int = 0,
    audio: bool = False,
) -> Path:
    """Encodes pictures into a video file; the container follows from the file's name.

    Args:
        path: where to write.
        frames: the pictures as they shall be seen, uint8 (height, width, 3), all of one size.
        frame_rate: frames per second.
        codec: name of an encoder of PyAV.
        pix_fmt: pixel format of the encoder.
        options: options of the encoder.
        container_options: options of the muxer.
        times_s: presentation time in seconds of frame i; default: i / frame_rate.
        rotation_deg: 0, 90, 180 or 270: the file holds the pictures turned clockwise by that angle, with
            the note for players to turn them back.
        audio: adds a tone of the same length.

    Returns:
        `path`.
    """
    at = times_s or (lambda i: float(i / Fraction(frame_rate)))
    last_s = 0.0
    with _kept_priority(), av.open(str(path), "w", container_options=container_options or {}) as output:
        stream: Any = output.add_stream(codec, rate=frame_rate, options=options or {})
        stream.pix_fmt = pix_fmt
        if times_s is not None:
            stream.codec_context.time_base = TIME_BASE
        if rotation_deg:
            stream.set_display_rotation(rotation_deg)
        tone = output.add_stream("aac", rate=SAMPLE_RATE) if audio else None
        for i, picture in enumerate(frames):
            coded = np.ascontiguousarray(np.rot90(picture, -rotation_deg // 90))
            if i == 0:
                stream.height, stream.width = coded.shape[:2]
            frame = av.VideoFrame.from_ndarray(coded, format="rgb24")
            last_s = at(i)
            frame.pts, frame.time_base = round(last_s / TIME_BASE), TIME_BASE
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if tone is not None:
            _write_tone(output, tone, duration_s=last_s + 1 / frame_rate)
    return path


@contextlib.contextmanager
def _kept_priority() -> Iterator[None]:
    """Gives the caller its priority back: run by root, SVT-AV1 makes the calling thread a real-time one.

    Whatever such a thread starts is one, too, and lets nothing else run.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, parameters)


def _write_tone(output: Any, stream: Any, *, duration_s: float) -> None:
    time = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    samples = (0.2 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    for start in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def write_scene(
    path: Path, *, seconds: float, frame_rate: int, seed: int, size: tuple[int, int] = (320, 240), **how: Any
) -> Path:
    """Writes one scene of `draw_scene`; `how` goes to `write_video`.

    Args:
        path: where to write.
        seconds: length of the clip.
        frame_rate: frames per second.
        seed: which scene.
        size: width and height in pixels, as displayed.
        **how: codec, container and the like.

    Returns:
        `path`.
    """
    num_frames = round(seconds * frame_rate)
    draw = partial(draw_scene, num_frames=num_frames, size=size, seed=seed)
    return write_video(path, map(draw, range(num_frames)), frame_rate=frame_rate, **how)


@dataclass(frozen=True)
class DemoClip:
    """A sample clip: one story after the other, each as long as one of the clip's windows.

    Attributes:
        name: of the file; container and codec follow from it.
        frame_rate: frames per second.
        windows: the stories with their numbers of frames.
        size: width and height in pixels, as displayed.
        how: more arguments of `write_video`.
    """

    name: str
    frame_rate: int
    windows: tuple[tuple[Story, int], ...]
    size: tuple[int, int] = (320, 240)
    how: dict[str, Any] = field(default_factory=dict)

    def frames(self, seed: int) -> Iterator[Frame]:
        """Draws the clip; the seed decides what the stories leave open."""
        rng = np.random.default_rng(seed)
        for story, num_frames in self.windows:
            scene = stage(story, STAGING, size=self.size, rng=rng)
            for index in range(num_frames):
                yield scene.frame(index / (num_frames - 1))

    def write(self, folder: Path, seed: int) -> Path:
        """Writes it unless it is there: encoders may give other bytes, and changed bytes are new work."""
        path = folder / self.name
        if not path.exists():
            part = path.with_name(f".{path.name}")
            write_video(
                part, self.frames(seed), frame_rate=self.frame_rate, **CODECS[path.suffix], **self.how
            )
            part.replace(path)
        return path


def _one(background: str, colour: str, shape: str, *actions: str) -> Story:
    return Story(background, (Actor(colour, shape, actions),), is_sequence=len(actions) > 1)


def _two(background: str, first: str, then: str, *, is_sequence: bool) -> Story:
    """A story of two shapes, each told as `colour shape action`."""
    actors = [told.split(" ", 2) for told in (first, then)]
    return Story(background, tuple(Actor(a, b, (c,)) for a, b, c in actors), is_sequence)


STAGING = Staging(
    travel=Range(((0.6, 0.9),)),
    pace=Range(((0.7, 0.9),)),
    radius=Range(((0.17, 0.2),)),
    place=Range(((0.2, 0.8),)),
    growth=Range(((1.9, 2.2),)),
)
H264: dict[str, Any] = {"options": {"preset": "veryfast", "crf": "23"}}
VP9: dict[str, Any] = {
    "codec": "libvpx-vp9",
    "options": {"deadline": "realtime", "cpu-used": "8", "b": "300k"},
}
CODECS = {".mp4": H264, ".mov": H264, ".webm": VP9}

DEMO_CLIPS = (
    DemoClip("circle.mp4", 30, ((_one("blue", "red", "circle", "moves left", "grows"), 300),)),
    DemoClip(
        "square_and_cross.mp4",
        24,
        ((_two("green", "yellow square moves up", "purple cross shrinks", is_sequence=False), 120),),
    ),
    DemoClip(
        "two_windows.mp4",
        25,
        (
            (_one("black", "cyan", "triangle", "appears", "moves right"), 256),
            (_two("orange", "white cross moves down", "blue circle grows", is_sequence=True), 244),
        ),
    ),
    DemoClip(
        "with_sound.mp4", 30, ((_one("purple", "white", "square", "vanishes"), 240),), how={"audio": True}
    ),
    DemoClip("vp9.webm", 25, ((_one("grey", "orange", "triangle", "shrinks", "moves up"), 150),)),
    DemoClip(
        "phone_upright.mov",
        30,
        ((_one("white", "green", "circle", "moves down"), 180),),
        size=(240, 320),
        how={"rotation_deg": 90},
    ),
)
"""The stories of a clip stand where the clip's windows are under the default window rule."""


def make_clips(folder: Path) -> list[Path]:
    """Writes the demo's clips that are not there yet into `folder`; returns the paths of all."""
    folder.mkdir(parents=True, exist_ok=True)
    return [clip.write(folder, seed) for seed, clip in enumerate(DEMO_CLIPS)]


def main(argv: list[str] | None = None) -> int:
    """Writes the clips into the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Make the demo's sample clips.")
    parser.add_argument("folder", type=Path, help="where the clips are written")
    for path in make_clips(parser.parse_args(argv).folder):
        print(f"{path}  {path.stat().st_size / 1024:.0f} KiB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
