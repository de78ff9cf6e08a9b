"""Windows of many kinds, and the comparison of an engine's answers about them with those of transformers."""

import json
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conf.engine import EngineSettings
from conf.prompts import prompt_file
from conf.variants import ModelVariant
from demo.make_clips import write_scene
from tests.engine_fixtures import LOAD_TIMEOUT_S
from tests.udfs.engine.reference import Greedy, VisionReference
from tests.udfs.engine.render_windows import RenderJob, render_windows
from udfs.captioning import CaptionPlan, ClipWork, WindowWork, caption_clips
from udfs.cutting import ClipRef, WindowRule, cut_clip
from udfs.engine.client import EngineClient
from udfs.engine.requests import CaptionRequest, Generation, Reply
from udfs.engine.slot import Slot
from udfs.engine.worker import normalized
from udfs.video import Limits

CLIPS = (
    ((160, 120), Fraction(30), 2.0, ".mp4"),
    ((96, 64), Fraction(24000, 1001), 4.1, ".mkv"),
    ((120, 200), Fraction(25), 3.3, ".mp4"),
    ((320, 180), Fraction(60), 2.6, ".mp4"),
    ((240, 240), Fraction(12), 7.0, ".mkv"),
    ((256, 144), Fraction(15), 9.5, ".mp4"),
    ((144, 256), Fraction(48), 3.0, ".mp4"),
    ((200, 112), Fraction(30000, 1001), 5.2, ".mkv"),
)
"""Size, frame rate, seconds and container."""

RULES = (WindowRule(2.0, 60, 30), WindowRule(3.7, 45, 20))
PROMPTS = ("What moves?", prompt_file("caption_default"), prompt_file("caption_av"))
SECOND = prompt_file("stage2_default") + "\n\n"
GREEDY = Generation(temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_output_tokens=20)
MOST_UNCERTAIN = 0.02
"""Greatest share of answers in which a close race may be met."""

TIMEOUT_S = 300


def window_requests(folder: Path, variant: ModelVariant) -> list[CaptionRequest]:
    """Films clips of many sizes, rates and lengths in `folder`, and returns what a task asks about them.

    Clips are cut, sampled, decoded and resized by the jobs' own code; prompts take turns.
    """
    works = []
    for number, (size, frame_rate, seconds, suffix) in enumerate(CLIPS):
        path = folder / f"clip_{number}{suffix}"
        write_scene(path, seed=60 + number, size=size, frame_rate=frame_rate, seconds=seconds)
        for rule in RULES:
            clip = ClipRef(path.stem, number, None, None, str(path))
            rows = cut_clip(clip, rule, Limits())
            windows = [
                WindowWork(row["window_id"], row["frame_indices"], row["window_error"]) for row in rows
            ]
            works.append(ClipWork(clip.clip_id, None, str(path), windows))
    asked: list[CaptionRequest] = []

    def take(request: CaptionRequest) -> "Future[Reply]":
        number = len(asked)
        asked.append(
            replace(request, request_key=f"w{number}", prompt=PROMPTS[number % 3], stage2_prompt=SECOND)
        )
        future: Future[Reply] = Future()
        future.set_result(Reply(text=""))
        return future

    plan = CaptionPlan(variant, "", None, GREEDY, Limits(), full_size=False, max_pending=8, verbose=False)
    list(caption_clips([works], take, plan))
    return asked


@dataclass(frozen=True)
class Pass:
    """One pass of an engine over a window, as it was recorded.

    Attributes:
        request: the window, with the text of this pass as its prompt.
        record: what `udfs.engine.recording` wrote.
        pixels: what was handed to the engine; None where vLLM had it in its cache.
    """

    request: CaptionRequest
    record: dict[str, Any]
    pixels: np.ndarray | None


@contextmanager
def own_engine(settings: EngineSettings) -> Iterator[EngineClient]:
    """A client of an engine that is loaded for it, has an owner of its own, and so takes no other's place."""
    with subprocess.Popen(["sleep", "900"]) as owner:
        try:
            with EngineClient(settings, Slot.of_process(owner.pid)) as client:
                client.wait_ready(LOAD_TIMEOUT_S)
                yield client
                client.stop_host()
        finally:
            owner.kill()


def passes_of(client: EngineClient, requests: list[CaptionRequest], records: Path) -> list[Pass]:
    """Asks an engine about windows twice over and returns all passes."""
    replies = [future.result(TIMEOUT_S) for future in [client.submit(r, len(requests)) for r in requests]]
    found = []
    for request, reply in zip(requests, replies, strict=True):
        assert (reply.error, reply.stage2_error) == (None, None)
        (folder,) = records.glob(f"{request.request_key}#*")
        texts = (request.prompt, second_text(request, str(reply.stage1_text)))
        for stage, text in enumerate(texts, start=1):
            record = json.loads((folder / f"stage{stage}.json").read_text(encoding="utf-8"))
            pixels = np.load(folder / f"stage{stage}.npz").get("pixel_values_videos")
            found.append(Pass(replace(request, prompt=text), record, pixels))
    return found


def second_text(request: CaptionRequest, first_caption: str) -> str:
    """What stands behind the video in the second pass."""
    return f"{request.prompt}\n\n{request.stage2_prompt}{first_caption}"


def assert_passes_equal(passes: list[Pass], reference: VisionReference, model: Path, folder: Path) -> None:
    """Fails where an engine got or answered anything else than transformers would."""
    rendered = render_windows([RenderJob(str(model), "float32", [one.request for one in passes])], folder)[0]
    answers = []
    for one, window in zip(passes, rendered, strict=True):
        inputs = reference.inputs(one.request, one.request.prompt)
        positions = reference.positions(inputs, one.request.times_s)
        if one.pixels is not None:
            vision = reference.processor.video_processor
            pixels = normalized(torch.from_numpy(one.pixels), vision.image_mean, vision.image_std)
            assert torch.equal(pixels, inputs["pixel_values_videos"])
        assert one.record["token_ids"] == window.token_ids == inputs["input_ids"][0].tolist()
        assert np.array_equal(window.positions, positions)
        answers.append((reference.answer(inputs, positions, GREEDY.max_output_tokens), told(one.record)))
    assert any(one.pixels is not None for one in passes)
    assert_answers_equal(answers)


def told(record: dict[str, Any]) -> list[int]:
    """The tokens of a recorded answer."""
    return list(record["answer"]["token_ids"])


def assert_answers_equal(answers: Iterable[tuple[Greedy, list[int]]]) -> None:
    """Fails where tokens differ before the first close race, or too many answers have one."""
    answers = list(answers)
    for expected, got in answers:
        certain = expected.num_certain
        assert got[:certain] == expected.token_ids[:certain]
        assert certain < len(expected.token_ids) or len(got) == certain
    uncertain = sum(expected.num_certain < len(expected.token_ids) for expected, _ in answers)
    assert uncertain <= MOST_UNCERTAIN * len(answers), f"{uncertain} of {len(answers)}"
