"""What runs beside the model: pixels that it rescales and normalizes itself."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor

from tests.engine_fixtures import CHECKPOINTS
from udfs.engine.worker import WorkerExtension, normalized

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


class Model:
    """Has the method of vLLM's models of Qwen that takes a video's tensors."""

    def _parse_and_validate_video_input(self, **inputs: Any) -> dict[str, Any]:
        return inputs


def extension_of(model: Any) -> WorkerExtension:
    extension = WorkerExtension()
    extension.model_runner = SimpleNamespace(get_model=lambda: model)
    return extension


def test_bytes_become_bit_by_bit_what_the_processor_makes_of_them() -> None:
    vision = AutoProcessor.from_pretrained(CHECKPOINTS / "captionlake" / "demo-vl").video_processor
    frames = np.random.default_rng(0).integers(0, 256, (6, 112, 84, 3), dtype=np.uint8)
    asked = {"videos": [frames], "do_resize": False, "return_tensors": "pt"}
    floats = vision(**asked)["pixel_values_videos"]
    pixels = vision(**asked, do_rescale=False, do_normalize=False)["pixel_values_videos"]
    assert pixels.dtype == torch.uint8
    assert torch.equal(normalized(pixels, vision.image_mean, vision.image_std), floats)


def test_a_model_is_given_floats_for_bytes() -> None:
    model = Model()
    assert extension_of(model).take_bytes(MEAN, STD)
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 12)
    expected = normalized(pixels.clone(), MEAN, STD)
    given = model._parse_and_validate_video_input(pixel_values_videos=pixels, video_grid_thw="grid")
    assert given["video_grid_thw"] == "grid"
    assert torch.equal(given["pixel_values_videos"], expected)
    assert pixels.tolist() == torch.arange(24).view(2, 12).tolist()


def test_a_model_is_given_floats_and_other_tensors_as_they_are() -> None:
    model = Model()
    extension_of(model).take_bytes(MEAN, STD)
    floats = torch.rand(2, 12, dtype=torch.bfloat16)
    assert model._parse_and_validate_video_input(pixel_values_videos=floats)["pixel_values_videos"] is floats
    assert model._parse_and_validate_video_input(video_embeds=floats) == {"video_embeds": floats}


def test_a_model_of_another_kind_says_so() -> None:
    assert extension_of(object()).take_bytes(MEAN, STD) is False
