"""A vision tower of Qwen2.5-VL whose inner width suits a card.

The published ones are 3,420 wide inside, which no kernel for 16-bit or 8-bit products takes as it is: every
step would copy what goes into a product to a wider place. Here the weights are widened once, when they are
loaded. What is added is zero, and adds nothing to any sum.
"""

import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MULTIPLE = 128
WIDENED = {"mlp.gate_proj.": 0, "mlp.up_proj.": 0, "mlp.down_proj.weight": 1}
"""Dimension of the inner width by what the name of a weight has in it."""


def wider_tower(model_path: str) -> dict[str, Any]:
    """Returns what differs in the configuration of a model with a wider tower; empty where none is needed.

    Args:
        model_path: folder of the model.
    """
    path = Path(model_path) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    width = config.get("vision_config", {}).get("intermediate_size", 0)
    if config.get("model_type") != "qwen2_5_vl" or "quantization_config" in config or width % MULTIPLE == 0:
        return {}
    return {"vision_config": {"intermediate_size": width + -width % MULTIPLE}}


def load_widened() -> None:
    """Has vLLM's towers of Qwen2.5-VL widen weights that are narrower than they are, from now on."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VisionTransformer

    load = Qwen2_5_VisionTransformer.load_weights

    @functools.wraps(load)
    def load_weights(self: Any, weights: Iterable[tuple[str, Any]]) -> Any:
        return load(self, widened(weights, self.blocks[0].mlp.down_proj.input_size))

    Qwen2_5_VisionTransformer.load_weights = load_weights


def widened(weights: Iterable[tuple[str, Any]], width: int) -> Iterator[tuple[str, Any]]:
    """Yields weights of a tower, and zeros behind those whose inner width is less than `width`."""
    from torch.nn.functional import pad

    for name, weight in weights:
        dimension = next((found for part, found in WIDENED.items() if part in name), None)
        missing = 0 if dimension is None else width - weight.shape[dimension]
        if missing > 0:
            behind = [0] * (2 * (weight.dim() - 1 - dimension)) + [0, missing]
            yield name, pad(weight, behind)
        else:
            yield name, weight
