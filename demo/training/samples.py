"""What the models learn from: made-up stories, filmed, encoded, and read the way the jobs read clips.

A window is planned by `plan_windows`, its sampled frames are drawn, encoded by a real codec, decoded by
`read_windows` and resized by `resize_frame`; prompts come from the jobs' files. Between sampled frames
nothing is drawn, since nobody would see it.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from conf.prompts import prompt_file
from conf.variants import DEMO
from demo.drawing import Frame, Range, Staging, stage
from demo.stories import Story, caption_of, draw_story
from udfs.engine.rendering import second_prompt
from udfs.resize import fit_size, resize_frame
from udfs.video import read_windows
from udfs.windowing import plan_windows

TRAINING = Staging(
    travel=Range(((0.45, 0.6), (0.7, 0.95))),
    pace=Range(((0.55, 0.72), (0.8, 1.0))),
    radius=Range(((0.15, 0.18), (0.195, 0.24))),
    place=Range(((0.0, 0.3), (0.4, 0.62), (0.7, 1.0))),
    growth=Range(((1.75, 1.95), (2.05, 2.4))),
)
"""The gaps between the intervals are what the tests use; see `tests/pipeline`."""

SIZES = ((256, 192), (320, 240), (320, 180), (384, 216), (240, 240), (192, 256), (360, 240))
FRAME_RATES = (Fraction(24), Fraction(25), Fraction(30), Fraction(15), Fraction(24000, 1001), Fraction(60))
SAMPLED = (8, 10, 12, 14, 16, 18, 20, 22)
CODECS = ("libx264", "libx264", "mpeg4", None)
"""None: the frames as they were drawn."""

OTHER_PROMPTS = (
    "Describe the video.",
    "What happens in this clip?",
    "What moves?",
    "Which colours are there?",
    "Describe this clip in one sentence.",
    "Write a caption.",
)


@dataclass(frozen=True)
class Window:
    """A window as the engine gets it, with what it shows.

    Attributes:
        frames: uint8 (n, height, width, 3), RGB at the model's size.
        times_s: float64 (n,), real times in seconds.
        story: the truth.
    """

    frames: npt.NDArray[np.uint8]
    times_s: npt.NDArray[np.float64]
    story: Story


def make_window(rng: np.random.Generator, *, num_sampled: int, size: tuple[int, int]) -> Window:
    """Films a new story and samples it.

    Args:
        rng: where chance comes from.
        num_sampled: frames that the sampling must give.
        size: width and height of the clip in pixels.
    """
    story = draw_story(rng)
    scene = stage(story, TRAINING, size=size, rng=rng)
    frame_rate = FRAME_RATES[rng.integers(len(FRAME_RATES))]
    num_frames = _length(rng, num_sampled, float(frame_rate))
    (window,) = plan_windows(num_frames, float(frame_rate), window_size=num_frames)
    picked = np.array(window.frame_indices)
    drawn = [scene.frame(index / (num_frames - 1)) for index in picked]
    height, width = fit_size(size[1], size[0], num_frames=num_sampled, variant=DEMO)
    transform = partial(resize_frame, height=height, width=width)
    codec = CODECS[rng.integers(len(CODECS))]
    if codec is None:
        frames = np.stack([transform(frame) for frame in drawn])
    else:
        clip = encode(drawn, codec, rng)
        (read,) = read_windows(clip, [list(range(num_sampled))], transform=transform)
        assert read.frames is not None, read.error
        frames = read.frames
    return Window(frames, picked / float(frame_rate), story)


def _length(rng: np.random.Generator, num_sampled: int, frame_rate: float) -> int:
    """A number of frames from which `num_sampled` are sampled."""
    while True:
        num_frames = round((num_sampled / 2 + rng.uniform(-0.45, 0.45)) * frame_rate)
        (window,) = plan_windows(num_frames, frame_rate, window_size=num_frames)
        if len(window.frame_indices) == num_sampled:
            return num_frames


def encode(frames: list[Frame], codec: str, rng: np.random.Generator) -> bytes:
    """Encodes pictures into a Matroska clip of some quality."""
    options = {"crf": str(rng.integers(16, 33)), "preset": str(rng.choice(["ultrafast", "veryfast"]))}
    if codec == "mpeg4":
        options = {"qscale": str(rng.integers(2, 9))}
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream: Any = output.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def draw_prompt(rng: np.random.Generator) -> str:
    """One of the jobs' prompts, or another short one."""
    variants = [prompt_file(f"caption_{name}") for name in ("default", "av", "av-surveillance")]
    if rng.random() < 0.6:
        return variants[rng.integers(len(variants))]
    return OTHER_PROMPTS[rng.integers(len(OTHER_PROMPTS))]


def draw_second_prompt(rng: np.random.Generator, story: Story) -> str:
    """The prompt of a second pass after a first caption that may be wrong."""
    first = story if rng.random() < 0.5 else draw_story(rng)
    return second_prompt(draw_prompt(rng), prompt_file("stage2_default") + "\n\n", caption_of(first))


@dataclass(frozen=True)
class Batch:
    """Windows of one shape, with one question each.

    Attributes:
        frames: uint8 (batch, n, height, width, 3), an array or a tensor.
        times_s: float64 (batch, n), real times in seconds.
        prompts: what is asked about each.
        stories: what each shows.
        is_second: whether the prompts are those of second passes, which hold a caption.
    """

    frames: Any
    times_s: npt.NDArray[np.float64]
    prompts: tuple[str, ...]
    stories: tuple[Story, ...]
    is_second: bool = False


def make_batch(seed: tuple[int, ...], batch_size: int) -> Batch:
    """Makes a batch that depends on the seed alone."""
    rng = np.random.default_rng(seed)
    size = SIZES[rng.integers(len(SIZES))]
    num_sampled = SAMPLED[rng.integers(len(SAMPLED))]
    windows = [make_window(rng, num_sampled=num_sampled, size=size) for _ in range(batch_size)]
    is_second = rng.random() < 0.15
    prompts = tuple(draw_second_prompt(rng, w.story) if is_second else draw_prompt(rng) for w in windows)
    return Batch(
        np.stack([window.frames for window in windows]),
        np.stack([window.times_s for window in windows]),
        prompts,
        tuple(window.story for window in windows),
        is_second,
    )


def batches(seed: int, batch_size: int, *, worker: int, num_workers: int) -> Iterator[Batch]:
    """Yields the share of one worker of an endless row of batches."""
    number = worker
    while True:
        yield make_batch((seed, number), batch_size)
        number += num_workers
