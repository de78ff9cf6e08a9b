"""The clips of the proof: stories that the demo's models have not seen, filmed in ways new to them.

Sizes, speeds, positions, frame rates and codecs lie outside of those of `demo.training.samples`. Each clip
can be written as it is, and in four ways that make its captions untrue.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from demo.drawing import Range, Staging, stage
from demo.make_clips import write_video
from demo.stories import Story, draw_story
from demo.training import samples
from demo.training.samples import TRAINING

PROOF = Staging(
    travel=Range(((0.61, 0.69),)),
    pace=Range(((0.73, 0.79),)),
    radius=Range(((0.181, 0.194),)),
    place=Range(((0.31, 0.39), (0.63, 0.69))),
    growth=Range(((1.96, 2.04),)),
)
SIZES = ((288, 216), (336, 252), (304, 172), (252, 252), (216, 288))
FRAME_RATES = (Fraction(4), Fraction(5), Fraction(6), Fraction(25, 4))
X265 = "log-level=0:pools=none:frame-threads=1"
FILMS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "mp4",
        {
            "codec": "libx265",
            "options": {"preset": "ultrafast", "crf": "22", "x265-params": X265, "threads": "1"},
        },
    ),
    (
        "webm",
        {
            "codec": "libvpx",
            "options": {"deadline": "realtime", "cpu-used": "16", "b": "600k", "threads": "1"},
        },
    ),
    (
        "mkv",
        {
            "codec": "libvpx-vp9",
            "pix_fmt": "yuv444p",
            "options": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0", "threads": "1"},
        },
    ),
)

WINDOW_SIZE = 32
REMAINDER_THRESHOLD = 16
LENGTHS = ((32,), (32,), (32,), (32, 32), (32, 32, 26))
"""Frames of each story; the stories of a clip stand where its windows are."""

NUM_CLIPS = 100

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ProofClip:
    """One clip.

    Attributes:
        number: decides everything about it.
        lengths: frames of each of its stories.
        size: width and height in pixels.
        frame_rate: frames per second.
        film: suffix of the file, and arguments of `write_video`.
    """

    number: int
    lengths: tuple[int, ...]
    size: tuple[int, int]
    frame_rate: Fraction
    film: tuple[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"clip_{self.number:03}.{self.film[0]}"

    @property
    def layout(self) -> tuple[Any, ...]:
        """Clips of equal layout can stand in for each other."""
        return self.lengths, self.size, self.frame_rate, self.film[0]

    def stories(self) -> list[Story]:
        """The truth, window by window."""
        return [story for story, _ in self._shots()]

    def frames(self) -> Frames:
        """All pictures: uint8 (n, height, width, 3), RGB."""
        return np.stack(
            [
                scene.frame(at / (length - 1))
                for (_, scene), length in zip(self._shots(), self.lengths, strict=True)
                for at in range(length)
            ]
        )

    def _shots(self) -> Iterator[tuple[Story, Any]]:
        rng = np.random.default_rng((20_261_126, self.number))
        for _ in self.lengths:
            story = draw_story(rng)
            yield story, stage(story, PROOF, size=self.size, rng=rng)


def proof_clips() -> list[ProofClip]:
    """The clips; each has a neighbour of the same layout."""
    clips = []
    for number in range(NUM_CLIPS):
        # Pairs share a layout, and a pair's number runs through all of them.
        pair = number // 2
        clips.append(
            ProofClip(
                number,
                LENGTHS[pair % len(LENGTHS)],
                SIZES[pair // len(LENGTHS) % len(SIZES)],
                FRAME_RATES[(pair + pair // len(LENGTHS)) % len(FRAME_RATES)],
                FILMS[pair % len(FILMS)],
            )
        )
    return clips


def as_it_is(own: Frames, neighbour: Frames, clip: ProofClip) -> Frames:
    """The clip itself."""
    return own


def backwards(own: Frames, neighbour: Frames, clip: ProofClip) -> Frames:
    """Played from its end to its start."""
    return own[::-1]


def red_and_blue_swapped(own: Frames, neighbour: Frames, clip: ProofClip) -> Frames:
    """With the wrong order of channels."""
    return own[..., ::-1]


def exchanged(own: Frames, neighbour: Frames, clip: ProofClip) -> Frames:
    """Another clip under this one's name."""
    return neighbour


def half_a_window_late(own: Frames, neighbour: Frames, clip: ProofClip) -> Frames:
    """Cut out of its video half a window too late, so that its end shows what comes next."""
    late = clip.lengths[0] // 2
    return np.concatenate((own[late:], neighbour[:late]))


Change = Callable[[Frames, Frames, ProofClip], Frames]
WRONG: tuple[Change, ...] = (backwards, red_and_blue_swapped, exchanged, half_a_window_late)


def write_clips(clips: list[ProofClip], folders: dict[Change, Path]) -> None:
    """Writes every clip as each change makes it, into that change's folder."""
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for first, second in zip(clips[::2], clips[1::2], strict=True):
        shown = {clip.number: clip.frames() for clip in (first, second)}
        for clip, other in ((first, second), (second, first)):
            assert clip.layout == other.layout
            write = partial(write_video, frame_rate=clip.frame_rate, **clip.film[1])
            for change, folder in folders.items():
                write(folder / clip.name, list(change(shown[clip.number], shown[other.number], clip)))


def is_unseen() -> bool:
    """Whether no parameter of the proof can occur in training."""
    ours = [(PROOF, TRAINING, name) for name in ("travel", "pace", "radius", "place", "growth")]
    staged_anew = all(
        high < low_seen or high_seen < low
        for mine, seen, name in ours
        for low, high in getattr(mine, name).intervals
        for low_seen, high_seen in getattr(seen, name).intervals
    )
    filmed_anew = (
        set(SIZES).isdisjoint(samples.SIZES)
        and set(FRAME_RATES).isdisjoint(samples.FRAME_RATES)
        and {how["codec"] for _, how in FILMS}.isdisjoint(samples.CODECS)
    )
    return staged_anew and filmed_anew
