"""A wider vision tower: when a model gets one, and that it computes the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.engine import EngineSettings
from udfs.engine.tower_width import widened, wider_tower
from udfs.engine.vllm_compat import Device, engine_arguments

H100 = Device("NVIDIA H100 80GB HBM3", (9, 0))


def write_config(folder: Path, *, model_type: str = "qwen2_5_vl", width: int = 3420, **more: Any) -> Path:
    config = {"model_type": model_type, "vision_config": {"intermediate_size": width}, **more}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({}, 3456),
        ({"width": 129}, 256),
        ({"width": 3456}, None),
        ({"model_type": "qwen3_vl"}, None),
        ({"quantization_config": {"quant_method": "awq"}}, None),
    ],
)
def test_towers_of_an_awkward_width_get_a_wider_one(
    tmp_path: Path, config: dict[str, Any], width: int | None
) -> None:
    expected = {} if width is None else {"vision_config": {"intermediate_size": width}}
    assert wider_tower(str(write_config(tmp_path, **config)), {}) == expected


def test_models_whose_configuration_is_not_at_hand_stay_as_they_are(tmp_path: Path) -> None:
    assert wider_tower(str(tmp_path), {}) == {}
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    assert wider_tower(str(tmp_path), {}) == {}


def test_models_whose_weights_come_in_another_way_stay_as_they_are(tmp_path: Path) -> None:
    folder = str(write_config(tmp_path))
    assert wider_tower(folder, {"load_format": "dummy", "seed": 1}) != {}
    for given in (
        {"load_format": "sharded_state"},
        {"quantization": "bitsandbytes"},
        {"model_impl": "transformers"},
    ):
        assert wider_tower(folder, given) == {}
    (tmp_path / "hf_quant_config.json").write_text("{}")
    assert wider_tower(folder, {}) == {}


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("down_proj.weight", (2188800, 1), torch.uint8),
        ("down_proj.weight", (1280, 107), torch.float8_e4m3fn),
        ("gate_proj.weight_scale_inv", (27, 10), torch.float32),
        ("gate_proj.qweight", (1280, 428), torch.int32),
        ("up_proj.weight_scale", (1,), torch.float32),
        ("up_proj.input_scale", (), torch.float32),
        ("gate_proj.weight", (3420, 8), torch.bfloat16),
    ],
)
def test_weights_of_another_kind_are_loaded_as_they_are(
    name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    weight = torch.empty(shape, dtype=dtype, device="meta")
    [(_, loaded)] = widened([(f"blocks.0.mlp.{name}", weight)], 3420)
    assert loaded is weight


@pytest.mark.parametrize(
    ("device", "dtype", "wider"),
    [
        (H100, "bfloat16", True),
        (H100, "float32", False),
        (Device("cpu", None), "bfloat16", False),
    ],
)
def test_only_where_products_are_of_16_bits_or_fewer_on_a_card(
    tmp_path: Path, device: Device, dtype: Any, wider: bool
) -> None:
    settings = EngineSettings(model_path=str(write_config(tmp_path)), kind="caption", dtype=dtype)
    assert ("hf_overrides" in engine_arguments(settings, device)) is wider


def test_what_is_added_to_weights_adds_nothing_to_what_they_compute() -> None:
    def values(*shape: int) -> torch.Tensor:
        return torch.randint(-8, 8, shape, generator=generator).double()

    generator, width, inside, wide = torch.Generator().manual_seed(0), 6, 10, 16
    weights = {
        "blocks.3.norm1.weight": values(width),
        "blocks.3.attn.qkv.weight": values(3 * width, width),
        "blocks.3.mlp.gate_proj.weight": values(inside, width),
        "blocks.3.mlp.gate_proj.bias": values(inside),
        "blocks.3.mlp.up_proj.weight": values(inside, width),
        "blocks.3.mlp.up_proj.bias": values(inside),
        "blocks.3.mlp.down_proj.weight": values(width, inside),
        "blocks.3.mlp.down_proj.bias": values(width),
        "merger.mlp.0.weight": values(inside, inside),
    }
    wider = dict(widened(weights.items(), wide))
    changed = {name.removeprefix("blocks.3.mlp.") for name in weights if wider[name] is not weights[name]}
    assert changed == {
        *(f"{name}_proj.{part}" for name in ("gate", "up") for part in ("weight", "bias")),
        "down_proj.weight",
    }

    def answer(held: dict[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        def linear(name: str, given: torch.Tensor) -> torch.Tensor:
            prefix = f"blocks.3.mlp.{name}_proj"
            return torch.nn.functional.linear(given, held[f"{prefix}.weight"], held[f"{prefix}.bias"])

        return linear("down", torch.relu(linear("gate", states)) * linear("up", states))

    states = values(5, width)
    assert wider["blocks.3.mlp.gate_proj.weight"].shape == (wide, width)
    assert wider["blocks.3.mlp.down_proj.weight"].shape == (width, wide)
    assert torch.equal(answer(wider, states), answer(weights, states))
