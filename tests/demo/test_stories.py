"""Stories and their words: a truth that cannot be read back proves nothing about a caption."""

from itertools import product

import numpy as np
import pytest

from demo.stories import (
    ACTIONS,
    COLOURS,
    KINDS,
    SHAPES,
    Actor,
    Story,
    backwards,
    caption_of,
    description_of,
    draw_story,
    mirrored,
    read_caption,
    read_description,
)
from demo.training.scores import score

STORY = Story("blue", (Actor("red", "circle", ("moves left", "grows")),), True)


def stories(number: int, seed: int = 0) -> list[Story]:
    rng = np.random.default_rng(seed)
    return [draw_story(rng, KINDS[k % len(KINDS)]) for k in range(number)]


def test_every_story_can_be_read_back_from_both_of_its_texts() -> None:
    for story in stories(2_000):
        assert read_caption(caption_of(story)) == story
        assert read_description(description_of(story)) == story


def test_a_description_is_half_as_long_again_as_its_caption() -> None:
    for story in stories(2_000):
        assert len(description_of(story).split()) >= 1.5 * len(caption_of(story).split())


def test_stories_use_every_word_and_every_kind() -> None:
    drawn = stories(2_000)
    told = " ".join(caption_of(story) for story in drawn)
    assert all(word in told for word in (*COLOURS, *SHAPES, *ACTIONS))
    assert {(len(story.actors), story.is_sequence) for story in drawn} == set(product((1, 2), (False, True)))


def test_no_story_is_told_the_same_backwards() -> None:
    for story in stories(2_000):
        if len(story.actors) == 1:
            actor = story.actors[0]
            undone = tuple(ACTIONS[action] for action in reversed(actor.actions))
            assert undone != actor.actions
        elif story.is_sequence:
            first, second = story.actors
            undone_first = Actor(second.colour, second.shape, (ACTIONS[second.actions[0]],))
            assert (first, second) != (undone_first, Actor(first.colour, first.shape, first.actions))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A red circle moves left.",
        "A red circle moves left, then grows, on a blue background. It is round.",
        "A red circle flies on a blue background.",
        "A red circle and a blue square move on a blue background.",
    ],
)
def test_what_is_no_caption_states_nothing(text: str) -> None:
    assert read_caption(text) is None


def test_a_description_that_contradicts_itself_states_nothing() -> None:
    assert (
        read_description(description_of(STORY).replace("the red circle grows", "the red cross grows")) is None
    )


def test_a_score_counts_single_facts_and_whole_captions() -> None:
    wrong = "A red square moves left, then grows, on a blue background."
    found = score(
        [(caption_of(STORY), STORY), (wrong, STORY), ("nonsense", STORY), (None, STORY)], read_caption
    )
    assert (found.texts, found.true_texts) == (4, 1)
    assert (found.facts, found.true_facts, found.added_facts) == (4 * 6, 6 + 5, 1)


@pytest.mark.parametrize(
    ("told", "in_a_mirror", "from_end_to_start"),
    [
        (
            "A red circle moves left, then grows, on a blue background.",
            "A red circle moves right, then grows, on a blue background.",
            "A red circle shrinks, then moves right, on a blue background.",
        ),
        (
            "A red circle moves up while a white cross moves left, on a blue background.",
            "A white cross moves right while a red circle moves up, on a blue background.",
            "A red circle moves down while a white cross moves right, on a blue background.",
        ),
        (
            "A red circle moves right, then a white cross appears, on a blue background.",
            "A red circle moves left, then a white cross appears, on a blue background.",
            "A white cross vanishes, then a red circle moves left, on a blue background.",
        ),
    ],
)
def test_stories_in_a_mirror_and_from_end_to_start(
    told: str, in_a_mirror: str, from_end_to_start: str
) -> None:
    story = read_caption(told)
    assert story is not None
    assert caption_of(mirrored(story)) == in_a_mirror
    assert caption_of(backwards(story)) == from_end_to_start
