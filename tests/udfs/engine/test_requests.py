"""A request that changes on its way would be captioned wrongly; one that is none must not reach vLLM."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from tests.udfs.engine.requests_maker import caption_request
from udfs.engine.requests import (
    EngineReading,
    Generation,
    Reply,
    TextRequest,
    reply_of,
    request_header,
    request_of,
)


def test_a_caption_request_survives_the_wire() -> None:
    request = caption_request("w1", prompt="größe \N{GRINNING FACE}", stage2_prompt="again: ")
    got = request_of(json.loads(json.dumps(request_header(request))), request.frames)
    assert got.times_s.tolist() == request.times_s.tolist()
    assert (got.prompt, got.stage2_prompt, got.generation) == (
        request.prompt,
        request.stage2_prompt,
        request.generation,
    )


def test_a_text_request_survives_the_wire() -> None:
    request = TextRequest("t", "a caption", "a system prompt", Generation(0.5, 0.9, 1.0, 7))
    assert request_of(json.loads(json.dumps(request_header(request))), None) == request


@pytest.mark.parametrize("engine", [EngineReading("e", 12.5, 3.25), None])
def test_a_reply_survives_the_wire(engine: EngineReading | None) -> None:
    reply = Reply("a caption", "a first one", "stop", 7, 3, 0.5, None, "no second one", engine)
    assert reply_of(json.loads(json.dumps(asdict(reply)))) == reply


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": np.zeros((6, 28, 28, 3), np.float32)},
        {"frames": np.zeros((6, 28, 28), np.uint8)},
        {"frames": np.zeros((6, 3, 28, 28), np.uint8)},
        {"frames": np.zeros((0, 28, 28, 3), np.uint8), "times_s": np.zeros(0)},
        {"times_s": np.zeros(5)},
        {"times_s": np.array([0, 1, 2, 1, 4, 5.0])},
        {"times_s": np.array([0, 1, 2, np.nan, 4, 5])},
    ],
)
def test_frames_that_are_none_are_refused_before_they_are_sent(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="frames"):
        request_header(caption_request("w", **changes))
