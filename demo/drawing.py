"""Drawing stories: what a window shows, frame by frame, and the choices that make two clips differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from demo.stories import COLOURS, Actor, Story

Frame = npt.NDArray[np.uint8]
"""One picture: uint8 (height, width, 3), RGB."""

MARGIN = 0.03
"""Shapes keep this part of the picture's side away from its edge."""


PAIR_SCALE = 0.7
"""Two shapes are smaller than one alone, so that each has room to move."""


@dataclass(frozen=True)
class Range:
    """Where a number is drawn from: one of several intervals, so that others stay unseen."""

    intervals: tuple[tuple[float, float], ...]

    def draw(self, rng: np.random.Generator) -> float:
        """Draws uniformly from one of the intervals."""
        low, high = self.intervals[rng.integers(len(self.intervals))]
        return float(rng.uniform(low, high))


@dataclass(frozen=True)
class Staging:
    """The parameters of clips; those of training and of tests are disjoint.

    Attributes:
        travel: part of the free way that a moving shape goes.
        pace: part of its time that an action takes.
        radius: half the side of a shape, as part of the picture's shorter side, for one shape alone.
        place: where in its free room a shape starts, 0 to 1.
        growth: how many times larger a shape gets.
        shade: greatest distance of a colour from its namesake, in steps of 255.
        noise: standard deviation of the noise on every picture.
    """

    travel: Range
    pace: Range
    radius: Range
    place: Range
    growth: Range
    shade: int = 12
    noise: Range = Range(((0.0, 4.0),))


@dataclass(frozen=True)
class Act:
    """One action on the clock: it runs from `start` to `end`, parts of the window from 0 to 1."""

    action: str
    start: float
    end: float
    amount: float

    def progress(self, at: float) -> float:
        """How much of it is done."""
        return min(1.0, max(0.0, (at - self.start) / (self.end - self.start)))


@dataclass(frozen=True)
class Sprite:
    """A shape on stage; positions are parts of the picture's sides, the radius of its shorter side."""

    shape: str
    paint: tuple[float, ...]
    x: float
    y: float
    radius: float
    acts: tuple[Act, ...]

    def state(self, at: float) -> tuple[float, float, float, bool]:
        """Returns x, y, radius and whether it is there, at time `at` from 0 to 1."""
        x, y, radius, is_there = self.x, self.y, self.radius, True
        for act in self.acts:
            done = act.progress(at)
            match act.action:
                case "moves left" | "moves right":
                    x += act.amount * done * (-1 if act.action == "moves left" else 1)
                case "moves up" | "moves down":
                    y += act.amount * done * (-1 if act.action == "moves up" else 1)
                case "grows":
                    radius *= act.amount**done
                case "shrinks":
                    radius /= act.amount**done
                case "appears":
                    is_there = is_there and done >= 0.5
                case "vanishes":
                    is_there = is_there and done < 0.5
        return x, y, radius, is_there


@dataclass(frozen=True)
class Scene:
    """A story with everything that its words leave open; draws any of its moments."""

    ground: tuple[float, ...]
    slope: float
    sprites: tuple[Sprite, ...]
    noise: float
    size: tuple[int, int]
    grain: int

    def frame(self, at: float) -> Frame:
        """Draws the moment `at`, from 0 (first frame) to 1 (last frame); uint8 (height, width, 3)."""
        width, height = self.size
        shading = np.linspace(1 - self.slope, 1 + self.slope, height, dtype=np.float32)[:, None, None]
        picture = np.broadcast_to(np.asarray(self.ground, np.float32) * shading, (height, width, 3)).copy()
        for sprite in self.sprites:
            _paint(picture, sprite, at)
        if self.noise:
            rng = np.random.default_rng((self.grain, round(at * 1e6)))
            picture += self.noise * rng.standard_normal((height, width, 1), np.float32)
        drawn: Frame = np.clip(picture, 0, 255).astype(np.uint8)
        return drawn


def stage(story: Story, staging: Staging, *, size: tuple[int, int], rng: np.random.Generator) -> Scene:
    """Decides where and how the shapes of a story do what it says.

    Args:
        story: what happens.
        staging: where the numbers come from.
        size: width and height in pixels.
        rng: where chance comes from.
    """
    boundary = 0.5 + rng.uniform(-0.04, 0.04)
    sprites = []
    sides = [(0.0, 1.0)] if len(story.actors) == 1 else [(0.0, 0.5), (0.5, 1.0)]
    if story.is_sequence and len(story.actors) == 2 and rng.random() < 0.5:
        sides.reverse()
    for nth, (actor, side) in enumerate(zip(story.actors, sides, strict=True)):
        spans = _spans(story, nth, boundary)
        sprites.append(_sprite(actor, side, spans, staging, size=size, rng=rng))
    return Scene(
        ground=_shade(story.background, staging, rng),
        slope=float(rng.uniform(-0.08, 0.08)),
        sprites=tuple(sprites),
        noise=staging.noise.draw(rng),
        size=size,
        grain=int(rng.integers(1 << 31)),
    )


def _spans(story: Story, nth: int, boundary: float) -> list[tuple[float, float]]:
    """When the actions of an actor may take place."""
    if not story.is_sequence:
        return [(0.0, 1.0)]
    halves = [(0.0, boundary), (boundary, 1.0)]
    return halves if len(story.actors) == 1 else [halves[nth]]


def _sprite(
    actor: Actor,
    side: tuple[float, float],
    spans: Sequence[tuple[float, float]],
    staging: Staging,
    *,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Sprite:
    width, height = size
    shorter = min(size)
    growth = staging.growth.draw(rng)
    largest = staging.radius.draw(rng) * (1.0 if side == (0.0, 1.0) else PAIR_SCALE)
    largest *= 1.2 if {"grows", "shrinks"} & set(actor.actions) else 1.0
    low_x, high_x = side[0] + largest * shorter / width, side[1] - largest * shorter / width
    low_y, high_y = largest * shorter / height, 1 - largest * shorter / height
    free = {"x": high_x - low_x - 2 * MARGIN, "y": high_y - low_y - 2 * MARGIN}
    acts, ways = [], {"x": 0.0, "y": 0.0}
    for action, (start, end) in zip(actor.actions, spans, strict=True):
        pace = staging.pace.draw(rng) * (end - start)
        begin = start + (end - start - pace) * rng.random()
        amount = growth
        if action.startswith("moves"):
            axis = "x" if action in ("moves left", "moves right") else "y"
            amount = free[axis] * staging.travel.draw(rng)
            ways[axis] = -amount if action in ("moves left", "moves up") else amount
        acts.append(Act(action, begin, begin + pace, amount))
    is_growing = "grows" in actor.actions
    return Sprite(
        shape=actor.shape,
        paint=_shade(actor.colour, staging, rng),
        x=_start(low_x + MARGIN, free["x"], ways["x"], staging.place.draw(rng)),
        y=_start(low_y + MARGIN, free["y"], ways["y"], staging.place.draw(rng)),
        radius=largest / growth if is_growing else largest,
        acts=tuple(acts),
    )


def _start(low: float, free: float, way: float, place: float) -> float:
    """Where a shape starts so that its way stays within its room."""
    return low + max(0.0, -way) + (free - abs(way)) * place


def _shade(name: str, staging: Staging, rng: np.random.Generator) -> tuple[float, ...]:
    near = np.array(COLOURS[name]) + rng.integers(-staging.shade, staging.shade + 1, 3)
    return tuple(float(channel) for channel in np.clip(near, 0, 255))


def _paint(picture: Any, sprite: Sprite, at: float) -> None:
    x, y, radius, is_there = sprite.state(at)
    if not is_there:
        return
    height, width = picture.shape[:2]
    radius_px = radius * min(height, width)
    reach = int(radius_px) + 2
    left, top = max(0, int(x * width) - reach), max(0, int(y * height) - reach)
    right, bottom = min(width, int(x * width) + reach + 1), min(height, int(y * height) + reach + 1)
    dy, dx = np.mgrid[top:bottom, left:right].astype(np.float32)
    outside = _distance(sprite.shape, dx - x * width, dy - y * height, radius_px)
    cover = np.clip(0.5 - outside, 0, 1)[..., None]
    part = picture[top:bottom, left:right]
    part += cover * (np.asarray(sprite.paint, np.float32) - part)


def _distance(shape: str, dx: Any, dy: Any, radius: float) -> Any:
    """Signed distance in pixels to the edge of a shape, negative inside."""
    match shape:
        case "circle":
            return np.hypot(dx, dy) - radius
        case "square":
            return np.maximum(abs(dx), abs(dy)) - 0.88 * radius
        case "triangle":
            # An upright one: its base below, two sides that meet above.
            slant = (abs(dx) * 2 - dy - radius) / 5**0.5
            return np.maximum(slant, dy - radius)
        case _:
            bar = 0.34 * radius
            upright = np.maximum(abs(dx) - bar, abs(dy) - radius)
            return np.minimum(upright, np.maximum(abs(dx) - radius, abs(dy) - bar))
