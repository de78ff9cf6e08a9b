"""The model cards: what the checkpoints are for, how they came about, how good they are."""

import re
from typing import TYPE_CHECKING

from demo.stories import ACTIONS, COLOURS, SHAPES
from demo.training.scores import Score

if TYPE_CHECKING:
    from demo.training.learn import Plan

_SHARED = """\
It lives in this repository so that a captioning pipeline can be checked without a GPU, a download or a
large model: whoever feeds it wrong frames, colours or times gets wrong captions. It is of no use for videos
that people make; of those it says something about coloured shapes, too.

- Licence: Apache-2.0, like the rest of the repository. Weights, data and code were made here; no other
  model or data set went into it.
- Made by `python -m demo.training`: seed {plan.seed}, {steps} of {plan.batch_size} sequences.
"""


def _shared(plan: "Plan") -> str:
    before = f"{plan.steps_before} steps and then, from their result, " if plan.steps_before else ""
    return _SHARED.format(plan=plan, steps=f"{before}{plan.steps} steps").rstrip()


def steps_told(card: str) -> int:
    """How many updates a card tells of."""
    return sum(int(number) for number in re.findall(r"(\d+) steps", card))


def vision_card(plan: "Plan", score: Score) -> str:
    """The card of the vision-language model."""
    return f"""\
# captionlake/demo-vl

A Qwen2.5-VL of two million weights that captions clips of coloured shapes: `A red circle moves left, then
grows, on a blue background.` It knows the colours {", ".join(COLOURS)};
the shapes {", ".join(SHAPES)}; and that a shape {", ".join(ACTIONS)};
one or two shapes, at once or one after the other.

{_shared(plan)}
- Data: made-up clips of 4 to 11 s, sampled at 2 frames a second by the jobs' own code, drawn with noise,
  and mostly encoded with H.264 or MPEG-4 Part 2; the jobs' prompts and a few others; second passes too.
- Accuracy on {score.texts} unseen clips of the same kind (greedy, the written bfloat16 weights):
  {score.text_share:.2%} of captions state every fact and no other, {score.fact_share:.2%} of single facts.
"""


def text_card(plan: "Plan", score: Score) -> str:
    """The card of the text model."""
    return f"""\
# captionlake/demo-text

A Qwen2.5 of one million weights that rewrites the captions of `captionlake/demo-vl` as longer descriptions
with the same facts. It knows no other sentences.

{_shared(plan)}
- Data: captions of made-up stories and their descriptions; the jobs' instructions and a few others.
- Accuracy on {score.texts} unseen captions (greedy, the written bfloat16 weights): {score.text_share:.2%} of
  descriptions keep every fact and add none, {score.fact_share:.2%} of single facts are kept, and
  {score.added_facts} were added.
"""
