"""A vision tower of Qwen2.5-VL whose inner width suits a card.

The published ones are 3,420 wide inside. For products of 16 or 8 bits vLLM's compiled model would copy what
goes into them to a wider place in every step. Here the weights are widened once, when they are loaded. What
is added is zero, and adds nothing to any sum.
"""

import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MULTIPLE = 128
WIDENED = {
    "mlp.gate_proj.weight": 0,
    "mlp.gate_proj.bias": 0,
    "mlp.up_proj.weight": 0,
    "mlp.up_proj.bias": 0,
    "mlp.down_proj.weight": 1,
}
"""Dimension of the inner width by how the name of a weight ends."""

LOAD_FORMATS = ("auto", "safetensors", "dummy")
"""vLLM's ways of loading that hand weights over one by one."""


def wider_tower(model_path: str, given: dict[str, Any]) -> dict[str, Any]:
    """Returns what differs in the configuration of a model with a wider tower.

    Args:
        model_path: folder of the model.
        given: arguments of vLLM that were asked for.

    Returns:
        What to override; empty where the width is fine, and where weights would not come one by one as they
        were published: of quantized models, or with another loader or class.
    """
    folder = Path(model_path)
    if not (folder / "config.json").is_file() or (folder / "hf_quant_config.json").exists():
        return {}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = config.get("vision_config", {}).get("intermediate_size", 0)
    if config.get("model_type") != "qwen2_5_vl" or "quantization_config" in config or width % MULTIPLE == 0:
        return {}
    if not given.keys().isdisjoint(("quantization", "model_impl")):
        return {}
    if given.get("load_format", "auto") not in LOAD_FORMATS:
        return {}
    return {"vision_config": {"intermediate_size": width + -width % MULTIPLE}}


@functools.cache
def load_widened() -> None:
    """Has vLLM's towers of Qwen2.5-VL widen weights that are narrower than they are, from now on."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VisionTransformer

    load = Qwen2_5_VisionTransformer.load_weights

    @functools.wraps(load)
    def load_weights(self: Any, weights: Iterable[tuple[str, Any]]) -> Any:
        return load(self, widened(weights, self.blocks[0].mlp.down_proj.input_size))

    Qwen2_5_VisionTransformer.load_weights = load_weights


def widened(weights: Iterable[tuple[str, Any]], width: int) -> Iterator[tuple[str, Any]]:
    """Yields weights of a tower, and zeros behind those whose inner width is a little less than `width`."""
    from torch.nn.functional import pad

    for name, weight in weights:
        dimension = next((found for end, found in WIDENED.items() if name.endswith(end)), None)
        missing = 0 if dimension is None else width - weight.shape[dimension]
        if 0 < missing < MULTIPLE and weight.is_floating_point():
            behind = [0] * (2 * (weight.dim() - 1 - dimension)) + [0, missing]
            yield name, pad(weight, behind)
        else:
            yield name, weight
