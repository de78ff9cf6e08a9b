"""Requests for engine tests."""

from concurrent.futures import Future
from typing import Any

import numpy as np

from udfs.engine.requests import CaptionRequest, Generation, Reply

HEIGHT, WIDTH = 112, 168
TIMEOUT_S = 120


def answers(futures: list["Future[Reply]"]) -> list[Reply]:
    """What the engine answered, or raises what failed."""
    return [future.result(TIMEOUT_S) for future in futures]


def colour_frames(seed: int, num_frames: int = 6, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Frames of one plain colour each, so that windows differ much."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (num_frames, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (num_frames, height, width, 3)).copy()


def caption_request(key: str, seed: int = 0, num_frames: int = 6, **changes: Any) -> CaptionRequest:
    """A window of `num_frames` frames, half a second apart."""
    values: dict[str, Any] = {
        "request_key": key,
        "frames": colour_frames(seed, num_frames),
        "times_s": 3.0 + 0.5 * np.arange(num_frames),
        "prompt": "Describe the video in detail.",
        "generation": Generation(temperature=0.0, max_output_tokens=32),
    }
    return CaptionRequest(**{**values, **changes})
