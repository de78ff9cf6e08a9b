"""Our engine answers what transformers answers: the same pixels, tokens and positions, and greedy tokens."""

import json
from pathlib import Path

import numpy as np
import pytest

from conf.prompts import prompt_file
from conf.variants import DEMO
from demo.stories import caption_of, draw_story
from tests.engine_fixtures import DemoModels, vision_settings
from tests.udfs.engine.parity import (
    GREEDY,
    TIMEOUT_S,
    assert_answers_equal,
    assert_passes_equal,
    own_engine,
    passes_of,
    told,
    window_requests,
)
from tests.udfs.engine.reference import TextReference, VisionReference
from udfs.engine.client import EngineClient
from udfs.engine.requests import TextRequest
from udfs.engine.slot import Slot

pytestmark = pytest.mark.models

NUM_CAPTIONS = 40


def test_captions_and_second_passes_are_those_of_transformers(
    vision_engine: EngineClient, demo_models: DemoModels, engine_slot: Slot, tmp_path: Path
) -> None:
    """On the demo's trained model; a random Qwen3-VL is in `tests/faults`."""
    requests = window_requests(tmp_path, DEMO)
    assert len(requests) >= 32
    records = tmp_path / "records"
    with EngineClient(vision_settings(demo_models, record_dir=str(records)), engine_slot) as client:
        passes = passes_of(client, requests, records)
    assert len({one.record["answer"]["text"] for one in passes}) > len(requests)
    reference = VisionReference(demo_models.vision)
    assert_passes_equal(passes, reference, demo_models.vision, tmp_path / "rendered")


def test_a_wider_vision_tower_answers_the_same(demo_models: DemoModels, tmp_path: Path) -> None:
    """Cards get one, see `udfs.engine.tower_width`; here it is asked for, in float32."""
    width = json.loads((demo_models.vision / "config.json").read_text())["vision_config"]["intermediate_size"]
    settings = vision_settings(demo_models, record_dir=str(tmp_path / "records")).model_copy(
        update={"vllm_arguments": {"hf_overrides": {"vision_config": {"intermediate_size": width + 64}}}}
    )
    requests = window_requests(tmp_path, DEMO)[::4]
    with own_engine(settings) as client:
        assert client.status()["resolved"]["tower_width"] == width + 64
        passes = passes_of(client, requests, tmp_path / "records")
    reference = VisionReference(demo_models.vision)
    assert_passes_equal(passes, reference, demo_models.vision, tmp_path / "rendered")


def test_enhancements_are_those_of_transformers(
    text_engine: EngineClient, demo_models: DemoModels, engine_slot: Slot, tmp_path: Path
) -> None:
    rng = np.random.default_rng(77)
    captions = [caption_of(draw_story(rng)) for _ in range(NUM_CAPTIONS)]
    systems = [prompt_file("enhance_default"), prompt_file("enhance_av-surveillance"), "Make it rhyme."]
    requests = [TextRequest(f"e{k}", text, systems[k % 3], GREEDY) for k, text in enumerate(captions)]
    settings = text_engine.settings
    settings = settings.model_copy(
        update={"render": settings.render.model_copy(update={"record_dir": str(tmp_path)})}
    )
    with EngineClient(settings, engine_slot) as client:
        replies = [future.result(TIMEOUT_S) for future in [client.submit(r, 16) for r in requests]]
    assert [reply.error for reply in replies] == [None] * NUM_CAPTIONS
    reference = TextReference(demo_models.text)
    answers = []
    for request in requests:
        (path,) = tmp_path.glob(f"{request.request_key}#*/stage1.json")
        record = json.loads(path.read_text(encoding="utf-8"))
        inputs = reference.inputs(request.prompt, str(request.system))
        assert record["token_ids"] == inputs["input_ids"][0].tolist()
        answers.append((reference.answer(inputs, GREEDY.max_output_tokens), told(record)))
    assert_answers_equal(answers)
