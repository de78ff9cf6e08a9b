"""Whole models answer what they answered, though their last layer leaves out the tokens that nobody reads."""

from pathlib import Path

import pytest

from tests.engine_fixtures import DemoModels
from tests.udfs.engine.qwen3_checkpoint import make_qwen3_checkpoint
from tests.udfs.engine.shortened_answers import NUM_PROMPTS, STEP_TOKENS, answers_of

pytestmark = pytest.mark.models


@pytest.fixture(params=["qwen2.5-vl", "qwen3-vl", "qwen2"])
def checkpoint(
    request: pytest.FixtureRequest, demo_models: DemoModels, random_models: DemoModels, tmp_path: Path
) -> Path:
    """The demo's trained models, and a random one."""
    if request.param == "qwen3-vl":
        return make_qwen3_checkpoint(tmp_path / "qwen3", random_models.vision, with_weights=True)
    return demo_models.vision if request.param == "qwen2.5-vl" else demo_models.text


def test_answers_stay_the_same_though_most_rows_are_left_out(checkpoint: Path, tmp_path: Path) -> None:
    shortened, whole = answers_of(checkpoint, tmp_path, "shortened", "whole")
    (expected,) = answers_of(checkpoint, tmp_path, "plain")
    assert len({tuple(answer) for answer in expected["answers"]}) > NUM_PROMPTS / 2
    assert shortened["answers"] == whole["answers"] == expected["answers"]
    assert expected["steps"] == []
    assert all(seen == tokens for tokens, seen in whole["steps"])
    # One row for each of at most five requests, some of whose prompts took several steps.
    assert all(seen <= min(tokens, 5) for tokens, seen in shortened["steps"])
    assert sum(tokens == STEP_TOKENS for tokens, _ in shortened["steps"]) >= 2
    assert [tokens for tokens, _ in shortened["steps"]] == [tokens for tokens, _ in whole["steps"]]
