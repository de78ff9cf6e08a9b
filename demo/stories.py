"""The small world that the demo's models know: coloured shapes that move, change and come and go.

A story is what happens in one window. It can be drawn (`demo.drawing`), told in one sentence
(`caption_of`), told at length (`description_of`), and read back out of either text (`read_caption`,
`read_description`), so that what a model says can be compared with what was shown, fact by fact.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

COLOURS = {
    "red": (215, 40, 40),
    "orange": (242, 140, 25),
    "yellow": (240, 222, 50),
    "green": (45, 165, 65),
    "cyan": (60, 212, 222),
    "blue": (40, 75, 205),
    "purple": (140, 55, 180),
    "white": (240, 240, 240),
    "black": (18, 18, 18),
    "grey": (128, 128, 128),
}
"""Names of colours and their RGB; a clip's own shades lie around these."""

SHAPES = ("circle", "square", "triangle", "cross")
ACTIONS = {
    "moves left": "moves right",
    "moves right": "moves left",
    "moves up": "moves down",
    "moves down": "moves up",
    "grows": "shrinks",
    "shrinks": "grows",
    "appears": "vanishes",
    "vanishes": "appears",
}
"""What a shape can do, and what that looks like when the clip is played backwards."""

ALIKE = {frozenset(pair.split()) for pair in ["red orange", "orange yellow", "yellow white", "blue purple"]}
"""Colours that are too close to stand on each other."""

Kind = Literal["one", "one then", "two", "two then"]
KINDS: tuple[Kind, ...] = ("one", "one then", "two", "two then")


@dataclass(frozen=True)
class Actor:
    """A shape and what it does, in order: one action, or two of which the second follows the first."""

    colour: str
    shape: str
    actions: tuple[str, ...]

    @property
    def name(self) -> str:
        """Colour and shape: `red circle`."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Story:
    """What a window shows.

    Attributes:
        background: colour behind everything.
        actors: one shape, or two: the left one first when both act at once, else the one that acts first.
        is_sequence: whether something happens after something else.
    """

    background: str
    actors: tuple[Actor, ...]
    is_sequence: bool

    def facts(self) -> dict[str, str]:
        """Every single thing that a caption states, by name."""
        facts = {"background": self.background, "order": "then" if self.is_sequence else "at once"}
        for at, actor in enumerate(self.actors):
            facts |= {f"{at}.colour": actor.colour, f"{at}.shape": actor.shape}
            facts |= {f"{at}.action.{nth}": action for nth, action in enumerate(actor.actions)}
        return facts


def mirrored(story: Story) -> Story:
    """What a story's pictures show when left and right change places."""
    sides = {"moves left": "moves right", "moves right": "moves left"}
    actors = tuple(
        replace(actor, actions=tuple(sides.get(action, action) for action in actor.actions))
        for actor in story.actors
    )
    return replace(story, actors=actors if story.is_sequence else actors[::-1])


def backwards(story: Story) -> Story:
    """What a story's pictures show when they are played from the last to the first."""
    actors = tuple(
        replace(actor, actions=tuple(ACTIONS[action] for action in reversed(actor.actions)))
        for actor in story.actors
    )
    return replace(story, actors=actors[::-1] if story.is_sequence else actors)


def draw_story(rng: np.random.Generator, kind: Kind | None = None) -> Story:
    """Makes up a story.

    Stories that look the same backwards are left out, since nobody could tell whether a caption of
    such a clip has seen its frames in order.

    Args:
        rng: where chance comes from.
        kind: how many shapes, and whether one thing follows another; None for any.
    """
    kind = kind or KINDS[rng.integers(len(KINDS))]
    background = str(rng.choice(list(COLOURS)))
    names = [name for name in COLOURS if name != "grey" and _stand_out(name, background)]
    while True:
        looks = [(str(rng.choice(names)), str(rng.choice(SHAPES))) for _ in range(2)]
        actions = [str(action) for action in rng.choice(list(ACTIONS), 2)]
        if kind in ("one", "one then"):
            actor = Actor(*looks[0], tuple(actions[: 1 if kind == "one" else 2]))
            story = Story(background, (actor,), kind == "one then")
        else:
            actors = tuple(Actor(*look, (action,)) for look, action in zip(looks, actions, strict=True))
            story = Story(background, actors, kind == "two then")
        if _is_clear(story):
            return story


def _stand_out(colour: str, background: str) -> bool:
    return colour != background and frozenset((colour, background)) not in ALIKE


def _is_clear(story: Story) -> bool:
    if len(story.actors) == 2:
        first, second = story.actors
        return first.name != second.name
    actions = story.actors[0].actions
    if len(actions) == 1:
        return True
    # A shape must be there to do something, and doing the same twice is one action.
    is_possible = actions[0] != "vanishes" and actions[1] != "appears" and actions[0] != actions[1]
    return is_possible and backwards(story) != story


def caption_of(story: Story) -> str:
    """Tells a story in one sentence.

    >>> caption_of(Story("blue", (Actor("red", "circle", ("moves left", "grows")),), True))
    'A red circle moves left, then grows, on a blue background.'
    """
    ground = f"on {_a(story.background)} background."
    first = story.actors[0]
    told = f"{_a(first.name).capitalize()} {first.actions[0]}"
    if len(story.actors) == 2:
        second = story.actors[1]
        link = ", then" if story.is_sequence else " while"
        return f"{told}{link} {_a(second.name)} {second.actions[0]}, {ground}"
    if story.is_sequence:
        return f"{told}, then {first.actions[1]}, {ground}"
    return f"{told} {ground}"


_OPENINGS = ("In this clip", "In the video", "Throughout the scene")
_STARTS = ("At first", "To begin with", "In the beginning")
_NEXTS = ("After that", "Later on", "Once that is done")


def description_of(story: Story) -> str:
    """Tells a story at length, with the facts of its caption and no others.

    >>> description_of(Story("blue", (Actor("red", "circle", ("grows",)),), False))
    'In this clip a red circle is seen on a blue background. As time passes, the red circle grows.'
    """
    first, last = story.actors[0], story.actors[-1]
    style = SHAPES.index(first.shape) % len(_OPENINGS)
    seen = " and ".join(_a(actor.name) for actor in story.actors)
    verb = "are" if len(story.actors) == 2 else "is"
    opening = f"{_OPENINGS[style]} {seen} {verb} seen on {_a(story.background)} background."
    if story.is_sequence:
        start = f"{_STARTS[style]}, the {first.name} {first.actions[0]}."
        return f"{opening} {start} {_NEXTS[style]}, the {last.name} {last.actions[-1]}."
    told = f"{opening} As time passes, the {first.name} {first.actions[0]}."
    if len(story.actors) == 2:
        told += f" Meanwhile, the {last.name} {last.actions[0]}."
    return told


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _one_of(words: "list[str] | tuple[str, ...] | dict[str, str]") -> str:
    return "(?:" + "|".join(re.escape(word) for word in words) + ")"


_COLOUR, _SHAPE, _ACTION = _one_of(list(COLOURS)), _one_of(SHAPES), _one_of(ACTIONS)


@dataclass(frozen=True)
class _Grammar:
    """The sentences of one kind of text as one regular expression."""

    pattern: str
    compiled: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        filled = re.sub(r"<(c|s|a)(\w+)>", _group, self.pattern)
        object.__setattr__(self, "compiled", re.compile(filled))


def _group(match: "re.Match[str]") -> str:
    words = {"c": _COLOUR, "s": _SHAPE, "a": _ACTION}[match[1]]
    return f"(?P<{match[1]}{match[2]}>{words})"


_CAPTION = _Grammar(
    r"An? <c0> <s0> <a0>"
    r"(?:(?P<while> while| *, then) an? <c1> <s1> <a1>,|, then <a2>,)? on an? <cb> background\."
)
_DESCRIPTION = _Grammar(
    _one_of(_OPENINGS)
    + r" an? <c0> <s0>(?: and an? <c1> <s1> are| is) seen on an? <cb> background\. "
    + rf"(?:{_one_of(_STARTS)}, the <c2> <s2> <a0>\. {_one_of(_NEXTS)}, the <c3> <s3> <a1>\."
    + r"|As time passes, the <c4> <s4> <a4>\.(?: Meanwhile, the <c5> <s5> <a5>\.)?)"
)


def read_caption(text: str) -> Story | None:
    """Reads the story back out of its caption; None where the text is no such caption."""
    match = _CAPTION.compiled.fullmatch(text.strip())
    if match is None:
        return None
    part = match.groupdict()
    if part["c1"]:
        first = Actor(part["c0"], part["s0"], (part["a0"],))
        second = Actor(part["c1"], part["s1"], (part["a1"],))
        return Story(part["cb"], (first, second), "then" in part["while"])
    actions = (part["a0"], part["a2"]) if part["a2"] else (part["a0"],)
    return Story(part["cb"], (Actor(part["c0"], part["s0"], actions),), bool(part["a2"]))


def read_description(text: str) -> Story | None:
    """Reads the story back out of its description; None where it is none, or contradicts itself."""
    match = _DESCRIPTION.compiled.fullmatch(text.strip())
    if match is None:
        return None
    part = match.groupdict()
    looks = [(part["c0"], part["s0"])] + ([(part["c1"], part["s1"])] if part["c1"] else [])
    if part["a0"]:
        done = [(part["c2"], part["s2"], part["a0"]), (part["c3"], part["s3"], part["a1"])]
    else:
        done = [(part["c4"], part["s4"], part["a4"])]
        done += [(part["c5"], part["s5"], part["a5"])] if part["a5"] else []
    actors = tuple(
        Actor(*look, tuple(action for colour, shape, action in done if (colour, shape) == look))
        for look in looks
    )
    told = sum(len(actor.actions) for actor in actors)
    if told != len(done) or not all(actor.actions for actor in actors):
        return None
    if len(actors) == 2 and [name for *name, _ in done] != [list(look) for look in looks]:
        return None
    return Story(part["cb"], actors, bool(part["a0"]))
