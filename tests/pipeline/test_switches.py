"""Switches that switch: each is set as a user sets it, and seen in what it is for."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession

from conf.engine import EngineSettings
from conf.errors import EngineError
from conf.loading import load_settings
from conf.settings import Settings
from demo.make_checkpoints import preprocessor_config
from jobs.caption import caption_udf
from jobs.enhance import enhance_udf
from jobs.models import caption_engine, text_engine
from tests.pipeline.asking import (
    SIZE,
    ask_captions,
    ask_enhancements,
    clip_work,
    film,
    record_of,
)
from tests.pipeline.conftest import lake_settings
from tests.udfs.engine.resolve_settings import resolve_settings
from udfs.engine import vllm_compat
from udfs.engine.client import EngineClient
from udfs.engine.slot import Slot
from udfs.engine.vllm_compat import Device
from udfs.engine.worker import normalized

H100, L4, A100 = Device("H100", (9, 0)), Device("L4", (8, 9)), Device("A100", (8, 0))
pytestmark = pytest.mark.models

CPU = Device("cpu", None)
MMCACHE = "--captioning-use-vllm-mmcache"
FP8, TEXT_FP8 = "--captioning-use-fp8-weights", "--enhance-captions-use-fp8-weights"

CACHED = {"enable_prefix_caching": True, "mm_processor_cache_gb": 4}
UNCACHED = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}

RESOLVED: dict[str, tuple[str, dict[str, Any], Device, dict[str, Any]]] = {
    "caption": ("caption", {MMCACHE: True}, H100, {"quantization": None, "dtype": "bfloat16"}),
    "caption fp8 H100": ("caption", {FP8: True}, H100, {"quantization": "fp8"}),
    "caption fp8 L4": ("caption", {FP8: True}, L4, {"quantization": "fp8"}),
    "caption fp8 A100": ("caption", {FP8: True}, A100, {"quantization": None, "dtype": "bfloat16"}),
    "caption fp8 cpu": ("caption", {FP8: True}, CPU, {"quantization": None}),
    "text": ("text", {}, H100, {"quantization": None, "enable_prefix_caching": True}),
    "text fp8 H100": ("text", {TEXT_FP8: True}, H100, {"quantization": "fp8"}),
    "text not by the other's flag": ("text", {FP8: True}, H100, {"quantization": None}),
    "caches on": (
        "caption",
        {MMCACHE: True},
        H100,
        {"enable_prefix_caching": True, "mm_processor_cache_gb": 4},
    ),
    "caches off": ("caption", {}, H100, UNCACHED),
    "caches off on the CPU": (
        "caption",
        {},
        CPU,
        {"enable_prefix_caching": False, "mm_processor_cache_gb": 0},
    ),
    "more arguments": (
        "caption",
        {"--vllm-argument": ("max-num-batched-tokens=8192", "enforce_eager=true")},
        H100,
        {"max_num_batched_tokens": 8192, "enforce_eager": True},
    ),
    "no more arguments": ("caption", {}, H100, {"max_num_batched_tokens": 16384, "enforce_eager": False}),
}


@pytest.fixture(scope="module")
def resolved(engine_flags: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """vLLM's resolved settings for each case, from one process."""
    common = {flag: engine_flags[flag] for flag in ("--model-variant", "--model-dir", "--max-model-len")}
    engines = {"caption": caption_engine, "text": text_engine}
    wanted = [
        (engines[kind](load_settings(flags={**common, **flags})), device)
        for kind, flags, device, _ in RESOLVED.values()
    ]
    return dict(zip(RESOLVED, resolve_settings(wanted), strict=True))


@pytest.mark.parametrize("case", RESOLVED)
def test_fp8_and_the_caches_are_what_vllm_resolves(resolved: dict[str, dict[str, Any]], case: str) -> None:
    expected = RESOLVED[case][-1]
    assert {name: resolved[case][name] for name in expected} == expected


@pytest.mark.parametrize(
    ("fp8", "device", "precision"),
    [
        (True, H100, "fp8"),
        (True, L4, "fp8"),
        (True, A100, "bfloat16"),
        (True, CPU, "bfloat16"),
        (False, H100, "bfloat16"),
    ],
)
def test_who_asks_for_fp8_where_it_cannot_be_is_told_once(
    caplog: pytest.LogCaptureFixture, fp8: bool, device: Device, precision: str
) -> None:
    settings = EngineSettings(model_path="m", kind="caption", fp8=fp8)
    with caplog.at_level(logging.WARNING):
        arguments = vllm_compat.engine_arguments(settings, device)
    assert arguments.get("quantization", arguments["dtype"]) == precision
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (fp8 and precision != "fp8")
    assert all("8.9" in text and device.name in text and "bfloat16" in text for text in told)


def test_groups_of_vllm_s_arguments_are_merged_name_by_name() -> None:
    given = {"compilation_config": {"mode": 0}, "seed": 3}
    settings = EngineSettings(model_path="m", kind="caption", vllm_arguments=given)
    arguments = vllm_compat.engine_arguments(settings, H100)
    assert arguments["compilation_config"] == {"compile_mm_encoder": True, "mode": 0}
    assert arguments["seed"] == 3


def test_an_argument_that_vllm_does_not_have_is_named_with_the_nearest_one() -> None:
    vllm_compat.check_known(["max_num_batched_tokens", "kv_cache_dtype"])
    with pytest.raises(EngineError, match=r"no argument max_batched_tokens .* mean max_num_batched_tokens\?"):
        vllm_compat.check_known(["max_batched_tokens"])


@pytest.fixture
def make_settings_with(engine_flags: dict[str, Any], tmp_path: Path) -> Any:
    """Settings under which the suite's engines answer and record: `make_settings_with(**flags)`."""
    number = iter(range(100))

    def make(**flags: Any) -> Settings:
        records = tmp_path / f"records_{next(number)}"
        return lake_settings(engine_flags, tmp_path / "lake", record_dir=str(records), **flags)

    return make


def pixels_of(settings: Settings, path: Path, slot: Slot) -> tuple[Any, Any]:
    """The frames that were handed over for a clip's first window, and what the vision tower got."""
    work = clip_work(path, settings)
    (answer, *_) = ask_captions(settings, [work], slot)
    assert answer["caption_error"] is None
    _, arrays = record_of(settings, "captions", work.windows[0].window_id)
    return arrays["frames"], arrays["pixel_values_videos"]


def test_preprocess_dtype_is_the_type_that_pixels_are_rounded_to(
    vision_engine: EngineClient, engine_slot: Slot, make_settings_with: Any, tmp_path: Path
) -> None:
    clip = film(tmp_path)
    names = ("float32", "float16", "bfloat16")
    plain, half, brain = (
        pixels_of(make_settings_with(captioning_preprocess_dtype=name), clip, engine_slot)[1]
        for name in names
    )
    processor = preprocessor_config("video")
    tensor = torch.from_numpy(plain)
    exact = normalized(tensor, processor["image_mean"], processor["image_std"]).numpy()
    lost = {"float16": 0x1FFF, "bfloat16": 0xFFFF}
    for name, rounded in (("float16", half), ("bfloat16", brain)):
        assert not (rounded.astype(np.float32).view(np.uint32) & lost[name]).any()
        assert 0 < np.abs(rounded - exact).max() < (0.005 if name == "float16" else 0.05)
    assert (exact.astype(np.float32).view(np.uint32) & lost["float16"]).any()


def test_with_model_does_preprocess_the_model_s_processor_gets_frames_as_they_are(
    vision_engine: EngineClient, engine_slot: Slot, make_settings_with: Any, tmp_path: Path
) -> None:
    clip = film(tmp_path)
    ours, _ = pixels_of(make_settings_with(), clip, engine_slot)
    assert ours.shape[2:0:-1] != SIZE
    assert {side % 28 for side in ours.shape[1:3]} == {0}
    theirs, pixels = pixels_of(make_settings_with(captioning_model_does_preprocess=True), clip, engine_slot)
    assert theirs.shape[2:0:-1] == SIZE
    patches = len(pixels) // (len(theirs) // 2) // 4
    assert 16 <= patches <= 64


@pytest.mark.parametrize("limit", [3, 30])
def test_max_output_tokens_ends_captions_and_enhancements(
    vision_engine: EngineClient,
    text_engine: EngineClient,
    engine_slot: Slot,
    make_settings_with: Any,
    tmp_path: Path,
    limit: int,
) -> None:
    settings = make_settings_with(
        captioning_max_output_tokens=limit, enhance_captions_max_output_tokens=limit + 1
    )
    works = [clip_work(film(tmp_path, k, seconds=1.0), settings) for k in range(6)]
    captions = ask_captions(settings, works, engine_slot)
    texts = [f"A {colour} circle moves left, on a blue background." for colour in ("red", "green", "cyan")]
    enhanced = ask_enhancements(settings, texts, engine_slot)
    for answers, most in ((captions, limit), (enhanced, limit + 1)):
        counts = [answer["output_tokens"] for answer in answers]
        assert max(counts) <= most
        assert limit < 30 or max(counts) > 4
        for answer in answers:
            if answer["finish_reason"] == "length":
                assert answer["output_tokens"] == most
    assert {answer["caption_status"] for answer in captions} & {"truncated", "success"}
    if limit == 3:
        assert all(answer["enhanced_status"] == "truncated" for answer in enhanced)


NUM_WAITING = 100
RAMBLING = {"temperature": 2.0, "top_p": 1.0}
"""Makes the trained models go on to the greatest length, so that requests wait for each other."""


def most_in_flight(client: EngineClient, work: Any) -> int:
    """The most requests that an engine was seen to have while `work` ran, but for `NUM_WAITING` at most."""
    most = 0
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        while not done.done():
            most = max(most, client.status()["in_flight"])
            time.sleep(0.01)
        done.result()
    return most


@pytest.mark.parametrize("batch_size", [16, NUM_WAITING])
def test_caption_batch_size_is_how_many_windows_a_task_may_always_have_in_flight(
    spark: SparkSession,
    vision_engine: EngineClient,
    make_settings_with: Any,
    tmp_path: Path,
    batch_size: int,
) -> None:
    settings = make_settings_with(
        captioning_batch_size=batch_size, captioning_max_output_tokens=60, **RAMBLING
    )
    # A task shares the engine's room with the suite's own client.
    share = settings.engine.max_in_flight // 2
    clip = str(film(tmp_path, seconds=0.4))
    window = ("w", [0, 3, 6, 9], None)
    rows = [(f"c{k}", None, clip, [window]) for k in range(NUM_WAITING + 20)]
    schema = (
        "clip_id string, clip_bytes binary, clip_uri string, "
        "windows array<struct<window_id: string, frame_indices: array<int>, window_error: string>>"
    )
    frame = spark.createDataFrame(rows, schema).coalesce(1)
    columns = ("clip_id", "clip_bytes", "clip_uri", "windows")
    captioned = frame.select(caption_udf(settings)(*columns).alias("answers"))
    most = most_in_flight(vision_engine, captioned.collect)
    assert most <= max(share, batch_size)
    assert most > share or batch_size < share


def test_model_batch_size_is_how_many_captions_a_task_may_always_have_in_flight(
    spark: SparkSession, text_engine: EngineClient, make_settings_with: Any
) -> None:
    most = {}
    for batch_size in (16, NUM_WAITING):
        settings = make_settings_with(
            enhance_captions_batch_size=batch_size, enhance_captions_max_output_tokens=60, **RAMBLING
        )
        rows = [(f"w{k}", f"A red circle moves left {k} times.") for k in range(NUM_WAITING + 20)]
        frame = spark.createDataFrame(rows, "window_id string, caption string").coalesce(1)
        enhanced = frame.select(enhance_udf(settings)("window_id", "caption").alias("answer"))
        most[batch_size] = most_in_flight(text_engine, enhanced.collect)
    share = settings.engine.max_in_flight // 2
    assert most[16] <= share < most[NUM_WAITING] <= NUM_WAITING


def test_verbose_tells_the_set_up_and_each_clip_window_and_caption(
    vision_engine: EngineClient,
    text_engine: EngineClient,
    engine_slot: Slot,
    make_settings_with: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clip = film(tmp_path)

    def lines(**flags: Any) -> list[str]:
        settings = make_settings_with(captioning_window_size=50, captioning_remainder_threshold=4, **flags)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="udfs"):
            ask_captions(settings, [clip_work(clip, settings)], engine_slot)
            ask_enhancements(settings, ["A red circle moves left."], engine_slot)
        names = ("udfs.captioning", "udfs.enhancing")
        return [record.getMessage() for record in caplog.records if record.name in names]

    assert lines() == []
    told = lines(verbose=True)
    assert len([line for line in told if "prompt='What moves?'" in line]) == 1
    assert [line for line in told if line.startswith("clip_id=")] == ["clip_id=filmed_0 windows=2"]
    ended = [line for line in told if line.startswith("window_id=") and "status=" in line]
    assert len(ended) == 2
    assert len([line for line in told if line.startswith("window_id=e0 enhanced=")]) == 1
    assert len(told) == 6
