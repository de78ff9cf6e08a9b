"""The vision engine, with real vLLM: what a task hands over is what the model sees and answers."""

import itertools
import json
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.prompts import prompt_file
from tests.engine_fixtures import MAX_MODEL_LEN, DemoModels, vision_settings
from tests.udfs.engine.requests_maker import (
    HEIGHT,
    TIMEOUT_S,
    WIDTH,
    answers,
    caption_request,
    colour_frames,
)
from udfs.engine.client import EngineClient
from udfs.engine.requests import Generation, Reply
from udfs.engine.slot import Slot
from udfs.engine.worker import normalized


def record_of(folder: Path, key: str, stage: int = 1) -> tuple[dict[str, Any], Any]:
    """What reached vLLM for the one request called `key`."""
    (found,) = folder.glob(f"{key}#*")
    content = json.loads((found / f"stage{stage}.json").read_text(encoding="utf-8"))
    return content, np.load(found / f"stage{stage}.npz")


@pytest.fixture
def recording(
    vision_engine: EngineClient, demo_models: DemoModels, engine_slot: Slot, tmp_path: Path
) -> EngineClient:
    """A second client of the same engine, whose requests are recorded below `tmp_path`."""
    with EngineClient(vision_settings(demo_models, record_dir=str(tmp_path)), engine_slot) as client:
        yield client


@pytest.fixture(scope="session")
def processor(demo_models: DemoModels) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(demo_models.vision)


def test_captions_come_back_with_what_happened(vision_engine: EngineClient) -> None:
    replies = answers([vision_engine.submit(caption_request(f"w{k}", k), 8) for k in range(8)])
    for reply in replies:
        assert reply.error is None
        assert reply.text
        assert reply.finish_reason in ("stop", "length")
        assert 0 < reply.output_tokens <= 32
        assert reply.finish_reason == "stop" or reply.output_tokens == 32
        assert 0 < reply.latency_s < TIMEOUT_S
    assert len({reply.text for reply in replies}) > 4


def test_the_time_in_steps_grows_while_the_engine_works_and_only_then(vision_engine: EngineClient) -> None:
    long = Generation(temperature=1.0, top_p=1.0, repetition_penalty=1.5, max_output_tokens=60)
    requests = [caption_request(f"b{k}", k, generation=long) for k in range(16)]
    start_s, before_s = time.monotonic(), vision_engine.status()["busy_s"]
    replies = answers([vision_engine.submit(request, len(requests)) for request in requests])
    after_s, wall_s = vision_engine.status()["busy_s"], time.monotonic() - start_s
    assert 0.6 * wall_s < after_s - before_s <= wall_s
    time.sleep(1)
    assert vision_engine.status()["busy_s"] - after_s < 0.1
    readings = sorted((reply.engine for reply in replies if reply.engine), key=lambda one: one.at_s)
    assert len(readings) == len(replies)
    assert len({reading.engine_id for reading in readings}) == 1
    for one, later in itertools.pairwise(readings):
        assert one.busy_s <= later.busy_s
    assert before_s < readings[0].busy_s
    assert readings[-1].busy_s <= after_s


def test_prompt_tokens_are_those_that_the_processor_counts(
    vision_engine: EngineClient, processor: Any
) -> None:
    for num_frames, prompt in ((4, "What?"), (6, "Describe größe 日本 in detail."), (11, "x " * 300)):
        request = caption_request("count", 1, num_frames, prompt=prompt)
        message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}
        text = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text], videos=[request.frames], do_resize=False)
        assert vision_engine.submit(request).result(TIMEOUT_S).prompt_tokens == len(inputs["input_ids"][0])


def test_frames_prompt_and_times_reach_the_model_unchanged(
    recording: EngineClient, tmp_path: Path, processor: Any
) -> None:
    import torch

    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (6, HEIGHT, WIDTH, 3), dtype=np.uint8)
    request = caption_request(
        "exact", frames=frames, times_s=4.2 + 0.4 * np.arange(6), prompt="Who comes first?"
    )
    assert recording.submit(request).result(TIMEOUT_S).error is None
    content, arrays = record_of(tmp_path, "exact")
    assert (arrays["frames"] == frames).all()
    assert arrays["times_s"].tolist() == request.times_s.tolist()
    vision = processor.video_processor
    expected = vision(videos=[frames], do_resize=False, return_tensors="pt")["pixel_values_videos"]
    pixels = torch.from_numpy(arrays["pixel_values_videos"])
    assert pixels.dtype == torch.uint8
    assert torch.equal(normalized(pixels, vision.image_mean, vision.image_std), expected)
    assert arrays["video_grid_thw"].tolist() == [3, HEIGHT // 14, WIDTH // 14]
    assert content["processed"]["second_per_grid_ts"] == pytest.approx(0.8, abs=1e-6)
    placeholder = "<|vision_start|><|video_pad|><|vision_end|>"
    assert f"<|im_start|>user\n{placeholder}Who comes first?<|im_end|>" in content["prompt_text"]
    video_id = processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert content["token_ids"].count(video_id) == 3 * (HEIGHT // 28) * (WIDTH // 28)
    kept = [token for token in content["token_ids"] if token != video_id]
    assert processor.tokenizer.decode(kept) == content["prompt_text"].replace("<|video_pad|>", "")


@pytest.mark.parametrize("spacing_s", [0.5, 1 / 3, 0.0667, 2.5])
def test_the_seconds_between_frames_are_the_real_ones(
    recording: EngineClient, tmp_path: Path, spacing_s: float
) -> None:
    times_s = 100.0 + spacing_s * np.arange(8)
    recording.submit(caption_request("spaced", 2, 8, times_s=times_s)).result(TIMEOUT_S)
    content, _ = record_of(tmp_path, "spaced")
    assert content["processed"]["second_per_grid_ts"] == pytest.approx(2 * spacing_s, abs=1e-5)


def test_the_captions_follow_the_times(vision_engine: EngineClient) -> None:
    texts = {
        answers([vision_engine.submit(caption_request("t", 5, 12, times_s=spacing * np.arange(12)))])[0].text
        for spacing in (0.1, 0.5, 2.0, 4.0, 10.0)
    }
    assert len(texts) > 1


def test_answers_that_finish_out_of_order_stay_with_their_window(vision_engine: EngineClient) -> None:
    lengths = [64, 2, 33, 1, 50, 8, 3, 20] * 5

    finished: list[int] = []

    def submit(k: int) -> "Future[Reply]":
        generation = Generation(temperature=0.0, max_output_tokens=lengths[k])
        request = caption_request(f"o{k}", k, 4 + k % 6, prompt=f"Describe {k}.", generation=generation)
        future = vision_engine.submit(request, 16)
        # Here, and not when all are asked for: the first answers may be there by then.
        future.add_done_callback(lambda _: finished.append(k))
        return future

    alone = [submit(k).result(TIMEOUT_S) for k in range(0, 40, 7)]
    finished.clear()
    together = answers([submit(k) for k in range(40)])
    assert finished != sorted(finished), "every answer came in the order of asking, so nothing was tested"
    for reply, limit in zip(together, lengths, strict=True):
        assert reply.output_tokens <= limit
    expected = [(r.prompt_tokens, r.text) for r in alone]
    assert [(together[k].prompt_tokens, together[k].text) for k in range(0, 40, 7)] == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": "word " * 40_000}, str(MAX_MODEL_LEN)),
        ({"prompt": "  "}, "prompt is empty"),
        ({"frames": colour_frames(0, 6, 100, 100)}, "multiples of 28"),
    ],
)
def test_a_poisoned_window_costs_its_own_answer_only(
    vision_engine: EngineClient, changes: dict[str, Any], reason: str
) -> None:
    loads = vision_engine.status()["loads"]
    requests = [caption_request(f"p{k}", k) for k in range(4)]
    requests.insert(2, caption_request("poison", **changes))
    replies = answers([vision_engine.submit(request, 8) for request in requests])
    assert [reply.error is None for reply in replies] == [True, True, False, True, True]
    assert reason in (replies[2].error or "")
    assert replies[2].text is None
    assert vision_engine.status()["loads"] == loads


def test_the_second_pass_sees_the_video_and_the_first_caption(
    recording: EngineClient, tmp_path: Path
) -> None:
    reply = recording.submit(caption_request("two", 4, stage2_prompt="Refine: ")).result(TIMEOUT_S)
    assert reply.stage2_error is None
    first, _ = record_of(tmp_path, "two", 1)
    second, arrays = record_of(tmp_path, "two", 2)
    assert reply.stage1_text == first["answer"]["text"]
    asked = f"Describe the video in detail.\n\nRefine: {reply.stage1_text}"
    assert f"<|video_pad|><|vision_end|>{asked}<|im_end|>" in second["prompt_text"]
    assert (arrays["frames"] == caption_request("two", 4).frames).all()
    assert reply.text == second["answer"]["text"]
    assert second["answer"]["cached_tokens"] > 0
    assert reply.prompt_tokens == len(first["token_ids"]) + len(second["token_ids"])
    plain = recording.submit(caption_request("plain", 4, prompt=asked)).result(TIMEOUT_S)
    assert plain.text == reply.text


def test_the_second_passes_of_many_windows_compute_no_vision_features(vision_engine: EngineClient) -> None:
    """So many at once that vLLM cannot keep the features of all of them until the second passes."""
    prompt, second = prompt_file("caption_default"), prompt_file("stage2_default") + "\n\n"
    short = Generation(temperature=0.0, max_output_tokens=6)
    requests = [
        caption_request(f"v{k}", k, 4 + k % 7, prompt=prompt, stage2_prompt=second, generation=short)
        for k in range(64)
    ]
    before = vision_engine.status()["videos_encoded"]
    replies = answers([vision_engine.submit(request, len(requests)) for request in requests])
    assert [reply.stage2_error for reply in replies] == [None] * len(requests)
    assert all(reply.stage1_text and reply.text for reply in replies)
    assert vision_engine.status()["videos_encoded"] - before == len(requests)


def test_a_failed_second_pass_keeps_the_first_caption_and_says_so(vision_engine: EngineClient) -> None:
    reply = vision_engine.submit(caption_request("half", 4, stage2_prompt="word " * 40_000)).result(TIMEOUT_S)
    assert reply.error is None
    assert reply.text == reply.stage1_text
    assert reply.text
    assert str(MAX_MODEL_LEN) in (reply.stage2_error or "")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_preprocess_dtype_changes_the_pixels_by_its_rounding_alone(
    vision_engine: EngineClient,
    demo_models: DemoModels,
    engine_slot: Slot,
    tmp_path: Path,
    processor: Any,
    dtype: str,
) -> None:
    import torch

    request = caption_request("typed", 6)
    for name in ("float32", dtype):
        settings = vision_settings(demo_models, preprocess_dtype=name, record_dir=str(tmp_path / name))
        with EngineClient(settings, engine_slot) as client:
            assert client.submit(request).result(TIMEOUT_S).error is None
    vision = processor.video_processor
    pixels = torch.from_numpy(record_of(tmp_path / "float32", "typed")[1]["pixel_values_videos"])
    exact = normalized(pixels, vision.image_mean, vision.image_std).numpy()
    rounded = record_of(tmp_path / dtype, "typed")[1]["pixel_values_videos"]
    assert 0 < np.abs(exact - rounded).max() < (0.005 if dtype == "float16" else 0.05)


def test_bytes_and_floats_that_come_at_once_do_not_mix(
    vision_engine: EngineClient, demo_models: DemoModels, engine_slot: Slot
) -> None:
    before = vision_engine.status()["loads"]
    requests = [caption_request(f"mixed{k}", k) for k in range(12)]
    settings = vision_settings(demo_models, preprocess_dtype="float16")
    with EngineClient(settings, engine_slot) as other:
        alone = [other.submit(request).result(TIMEOUT_S).text for request in requests]
        own = [vision_engine.submit(request).result(TIMEOUT_S).text for request in requests]
        futures = [(vision_engine.submit(request, 12), other.submit(request, 12)) for request in requests]
        for (bytes_reply, floats_reply), as_bytes, as_floats in zip(futures, own, alone, strict=True):
            assert bytes_reply.result(TIMEOUT_S).text == as_bytes
            assert floats_reply.result(TIMEOUT_S).text == as_floats
    assert vision_engine.status()["loads"] == before


def test_clients_whose_pixels_cannot_be_normalized_beside_the_model_are_told_once(
    vision_engine: EngineClient, demo_models: DemoModels, engine_slot: Slot
) -> None:
    status = vision_engine.status()
    assert status["takes_bytes"] is status["takes_frames"] is status["remembers_grids"] is True
    settings = vision_settings(demo_models, model_does_preprocess=True, preprocess_dtype="float16")
    for name in ("first", "second"):
        with EngineClient(settings, engine_slot) as client:
            assert client.submit(caption_request(name, 6)).result(TIMEOUT_S).error is None
    log = Path(vision_engine.status()["log"]).read_text(encoding="utf-8", errors="replace")
    told = "model_does_preprocess=True preprocess_dtype=float16: pixels are normalized on the CPU"
    assert log.count(told) == 1


def test_full_size_frames_are_resized_by_the_processor(
    vision_engine: EngineClient, demo_models: DemoModels, engine_slot: Slot, tmp_path: Path
) -> None:
    settings = vision_settings(demo_models, model_does_preprocess=True, record_dir=str(tmp_path))
    with EngineClient(settings, engine_slot) as client:
        request = caption_request("full", frames=colour_frames(1, 6, 270, 481))
        assert client.submit(request).result(TIMEOUT_S).error is None
    _, arrays = record_of(tmp_path, "full")
    grid_t, grid_h, grid_w = arrays["video_grid_thw"].tolist()
    assert grid_t == 3
    assert 16 <= grid_h * grid_w / 4 <= 64
    assert arrays["frames"].shape == (6, 270, 481, 3)


def test_a_first_window_that_is_refused_spoils_no_other_of_its_kind(vision_engine: EngineClient) -> None:
    frames = [colour_frames(k, 6, 84, 252) for k in range(5)]
    prompts = ["word " * 40_000, "What?", "What?", "word " * 40_000, "What moves?"]
    requests = [
        caption_request(f"kind{k}", frames=frames[k], prompt=prompt) for k, prompt in enumerate(prompts)
    ]
    replies = answers([vision_engine.submit(request, len(requests)) for request in requests])
    assert [reply.error is None for reply in replies] == [False, True, True, False, True]
    assert all(str(MAX_MODEL_LEN) in str(replies[k].error) for k in (0, 3))
    # Alone, when its kind is known, each says the same.
    for request, reply in zip(requests, replies, strict=True):
        assert vision_engine.submit(request).result(TIMEOUT_S).text == reply.text


def test_the_status_tells_what_runs(vision_engine: EngineClient) -> None:
    status = vision_engine.status()
    assert status["state"] == "ready"
    assert status["device"] == "cpu"
    assert status["precision"] == "float32"
    assert status["resolved"]["enable_prefix_caching"]
    assert status["resolved"]["max_model_len"] == MAX_MODEL_LEN
    assert {"torch", "transformers"} <= set(status["versions"])
    assert Path(status["log"]).stat().st_mode & 0o777 == 0o600
