"""What a client asks of an engine, and what it gets back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Generation:
    """How an answer is sampled.

    Attributes:
        temperature: 0 is greedy.
        top_p: share of probability mass that sampling picks from.
        repetition_penalty: above 1 makes repeated tokens less likely.
        max_output_tokens: greatest number of tokens of one answer.
    """

    temperature: float = 0.1
    top_p: float = 0.001
    repetition_penalty: float = 1.05
    max_output_tokens: int = 512


@dataclass(frozen=True)
class CaptionRequest:
    """One window to caption.

    Attributes:
        request_key: names the window in logs and records; need not be unique.
        frames: `uint8` RGB of shape (n, height, width, 3).
        times_s: `float64` of shape (n,): presentation time of each frame in seconds, ascending.
        prompt: what the user asks about the video.
        stage2_prompt: None for one pass; else the caption is asked for again, with the prompt, this text
            and the first caption.
        generation: how the answer is sampled.
    """

    request_key: str
    frames: npt.NDArray[np.uint8]
    times_s: npt.NDArray[np.float64]
    prompt: str
    stage2_prompt: str | None = None
    generation: Generation = field(default_factory=Generation)


@dataclass(frozen=True)
class TextRequest:
    """One text to answer.

    Attributes:
        request_key: names the text in logs and records; need not be unique.
        prompt: the user's text.
        system: the system prompt; None for the one that the model's chat template brings.
        generation: how the answer is sampled.
    """

    request_key: str
    prompt: str
    system: str | None = None
    generation: Generation = field(default_factory=Generation)


@dataclass(frozen=True)
class EngineReading:
    """How long an engine has worked until a moment.

    Attributes:
        engine_id: names the engine among all engines of all machines; its host's successor has another one.
        at_s: the moment, in seconds by `time.monotonic()` of the engine's machine.
        busy_s: seconds in steps since it was loaded. A step counts when it has ended.
    """

    engine_id: str
    at_s: float
    busy_s: float


@dataclass(frozen=True)
class Reply:
    """The outcome of one request; a request that failed has an `error` and no text.

    Attributes:
        text: the answer; of the second pass where there was one that succeeded.
        stage1_text: the first caption when a second pass was asked for, else None.
        finish_reason: "stop" or "length", of the pass that `text` is from; None after an error.
        prompt_tokens: tokens of all prompts, those of the video included; both passes together.
        output_tokens: tokens of all answers; both passes together.
        latency_s: seconds from when a loaded engine took the request up to the last answer.
        error: what went wrong, in words a person can act on; None when `text` is an answer.
        stage2_error: why the second pass failed; `text` is then the first caption.
        engine: how long the engine had worked when it replied; None when that is unknown.
    """

    text: str | None
    stage1_text: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    latency_s: float = 0.0
    error: str | None = None
    stage2_error: str | None = None
    engine: EngineReading | None = None


Request = CaptionRequest | TextRequest


def reply_of(fields: Mapping[str, Any]) -> Reply:
    """Returns the reply that `dataclasses.asdict` took apart."""
    engine = fields["engine"]
    return Reply(**{**fields, "engine": None if engine is None else EngineReading(**engine)})


def request_header(request: Request) -> dict[str, Any]:
    """Returns everything of `request` but its pixels, as JSON types."""
    header: dict[str, Any] = {
        "request_key": request.request_key,
        "prompt": request.prompt,
        "generation": asdict(request.generation),
    }
    if isinstance(request, TextRequest):
        return {"kind": "text", "system": request.system, **header}
    check_frames(request.frames, request.times_s)
    return {
        "kind": "caption",
        "stage2_prompt": request.stage2_prompt,
        "shape": list(request.frames.shape),
        "times_s": [float(time_s) for time_s in request.times_s],
        **header,
    }


def check_frames(frames: npt.NDArray[Any], times_s: npt.NDArray[Any]) -> None:
    """Raises ValueError unless `frames` is `uint8` (n >= 1, height, width, 3) with one time per frame."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(
            f"frames must be uint8 of shape (n, height, width, 3), not {frames.dtype} {frames.shape}"
        )
    if times_s.shape != frames.shape[:1]:
        raise ValueError(f"{len(frames)} frames need as many times, not an array of shape {times_s.shape}")
    if not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
        raise ValueError("the times of the frames must be finite and ascending")


def request_of(header: Mapping[str, Any], frames: npt.NDArray[np.uint8] | None) -> Request:
    """Returns the request that `request_header` described.

    Args:
        header: as made by `request_header`.
        frames: pixels of a caption request, None for a text request.

    Raises:
        ValueError: when frames and header do not belong together.
        KeyError: when the header lacks something.
    """
    generation = Generation(**header["generation"])
    if header["kind"] == "text":
        return TextRequest(header["request_key"], header["prompt"], header["system"], generation)
    times_s = np.asarray(header["times_s"], dtype=np.float64)
    if frames is None:
        raise ValueError("a caption request came without frames")
    check_frames(frames, times_s)
    return CaptionRequest(
        request_key=header["request_key"],
        frames=frames,
        times_s=times_s,
        prompt=header["prompt"],
        stage2_prompt=header["stage2_prompt"],
        generation=generation,
    )
