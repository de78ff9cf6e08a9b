"""What runs beside the model: pixels that it rescales and normalizes itself."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoProcessor

from tests.engine_fixtures import CHECKPOINTS
from tests.udfs.engine.extension import extension_of
from udfs.engine.vllm_compat import Engine
from udfs.engine.worker import COPYING_THREADS, FRAMES_MARK, copy_in_parts, normalized

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


class Model:
    """Has what vLLM's models of Qwen have: the method that takes a video's tensors, and a tower."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.visual = SimpleNamespace(dtype=dtype, device=torch.device("cpu"))

    def _parse_and_validate_video_input(self, **inputs: Any) -> dict[str, Any]:
        return inputs


def test_bytes_become_bit_by_bit_what_the_processor_makes_of_them() -> None:
    vision = AutoProcessor.from_pretrained(CHECKPOINTS / "captionlake" / "demo-vl").video_processor
    frames = np.random.default_rng(0).integers(0, 256, (6, 112, 84, 3), dtype=np.uint8)
    asked = {"videos": [frames], "do_resize": False, "return_tensors": "pt"}
    floats = vision(**asked)["pixel_values_videos"]
    pixels = vision(**asked, do_rescale=False, do_normalize=False)["pixel_values_videos"]
    assert pixels.dtype == torch.uint8
    assert torch.equal(normalized(pixels, vision.image_mean, vision.image_std), floats)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_given_floats_of_its_own_type_for_bytes(dtype: torch.dtype) -> None:
    model = Model(dtype)
    assert extension_of(model).take_bytes(MEAN, STD)
    pixels = torch.arange(240, dtype=torch.uint8).view(20, 12)
    grids = torch.tensor([[1, 2, 6], [2, 2, 2]])
    given = model._parse_and_validate_video_input(pixel_values_videos=pixels, video_grid_thw=grids)
    assert given["video_grid_thw"] is grids
    assert torch.equal(given["pixel_values_videos"], normalized(pixels.clone(), MEAN, STD).to(dtype))
    assert pixels.tolist() == torch.arange(240).view(20, 12).tolist()


@pytest.mark.parametrize("name", ["Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor"])
def test_a_model_is_given_for_frames_what_the_processor_makes_of_them(name: str) -> None:
    processor = getattr(transformers, name)()
    depth, side, merge = layout = processor.temporal_patch_size, processor.patch_size, processor.merge_size
    rng = np.random.default_rng(1)
    unit = side * merge
    shapes = [
        (2 * depth, 2 * unit, 3 * unit, 3),
        (depth, 5 * unit, unit, 3),
        (depth + 1, unit, 2 * unit, 3),
        (1, unit, unit, 3),
    ]
    videos = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    expected = processor(videos=videos, do_resize=False, do_sample_frames=False, return_tensors="pt")
    model = Model()
    extension_of(model).take_bytes(list(processor.image_mean), list(processor.image_std))
    given = model._parse_and_validate_video_input(
        pixel_values_videos=[torch.from_numpy(video) for video in videos],
        video_grid_thw=expected["video_grid_thw"],
        **{FRAMES_MARK: torch.tensor([layout] * len(videos))},
    )
    assert set(given) == {"pixel_values_videos", "video_grid_thw"}
    assert torch.equal(given["pixel_values_videos"], expected["pixel_values_videos"])


@pytest.mark.parametrize("shape", [(5, 7, 3), (1,), (0, 4), (8,)])
@pytest.mark.parametrize("inference", [True, False])
def test_several_threads_copy_all_of_a_tensor(shape: tuple[int, ...], inference: bool) -> None:
    with ThreadPoolExecutor(COPYING_THREADS) as threads, torch.inference_mode(inference):
        source = torch.arange(2 * math.prod(shape)).view(*shape, 2).transpose(0, -1)
        target = torch.full(source.shape, -1)
        copy_in_parts(source, target, threads)
        assert torch.equal(source, target)


def test_a_model_is_given_floats_and_other_tensors_as_they_are() -> None:
    model = Model()
    extension_of(model).take_bytes(MEAN, STD)
    floats = torch.rand(2, 12, dtype=torch.bfloat16)
    assert model._parse_and_validate_video_input(pixel_values_videos=floats)["pixel_values_videos"] is floats
    assert model._parse_and_validate_video_input(video_embeds=floats) == {"video_embeds": floats}


def test_a_model_of_another_kind_says_so() -> None:
    assert extension_of(object()).take_bytes(MEAN, STD) is False
    assert extension_of(object()).remember_grids() is False


def test_a_tower_in_cuda_graphs_is_not_left_to_prepare_pixels() -> None:
    engine = object.__new__(Engine)
    config = SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_mm_encoder=True))
    engine._llm = SimpleNamespace(vllm_config=config)
    engine.renderer = SimpleNamespace(probe_bytes=lambda: None, model_type="qwen2_5_vl", takes_bytes=True)
    asyncio.run(engine.hand_bytes_over())
    assert engine.renderer.takes_bytes is False
