"""Layers of vLLM that do on a card in one kernel what vLLM does in several, or leave out what nobody reads.

- `fp8_rows`: in FP8, what comes before a product hands on its rows in 8 bits: norms, activations, and where
  there is neither, a kernel that does nothing else. vLLM compiles these into kernels that read everything
  twice, since a row's scale is known only when all of the row has been seen. See `fp8_product`.
- `window_attention`: see `tower_attention`.
- `last_layer`: see `last_layer`.

Each can be switched off by a name in vLLM's `additional_config`, `captionlake_` before these.
"""

import copy
import functools
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

VERSION = 2
"""Of what is changed here: vLLM keeps compiled models, and would take one from before a change."""

PREFIX = "captionlake_"
CHANGES = ("fp8_rows", "window_attention", "last_layer")


def additional_config() -> dict[str, Any]:
    """Returns what vLLM is told of the layers: all of it stands in the name of a compiled model."""
    return {f"{PREFIX}layers": VERSION} | switches(*CHANGES, on=True)


def switches(*changes: str, on: bool) -> dict[str, bool]:
    """Returns what switches changes on or off, for vLLM's `additional_config`."""
    return {PREFIX + change: on for change in changes}


def is_on(change: str) -> bool:
    """Whether the model that is being made is to have a change."""
    from vllm.config import get_current_vllm_config

    told = get_current_vllm_config().additional_config
    return not isinstance(told, dict) or bool(told.get(PREFIX + change, True))


def fuse_layers(*, of_towers: bool) -> None:
    """Has vLLM's models of Qwen's kind do so from now on, on NVIDIA's cards.

    What a version of vLLM builds otherwise stays as it is, and the log says so.

    Args:
        of_towers: vision towers as well as language models.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cuda():
        changes: list[Callable[[], None]] = [_multiply_rows, _quantize_in_language_models]
        changes += [_shorten_language_models] + ([_fuse_towers] if of_towers else [])
        for change in changes:
            try:
                change()
            except Exception as error:
                _tell(type(error).__name__, str(error))


@functools.cache
def _tell(where: str, reason: str) -> None:
    logger.warning("some of vLLM's layers stay as they are, and may be slower: %s: %s", where, reason)


def _multiply_rows() -> None:
    from udfs.engine.fp8_product import offer_row_product

    offer_row_product()


@functools.cache
def _quantize_in_language_models() -> None:
    from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer
    from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer

    for layer in (Qwen2DecoderLayer, Qwen3DecoderLayer):
        after_making(layer, quantize_before_products, named="fp8_rows")


def _shorten_language_models() -> None:
    from udfs.engine.last_layer import shorten_models

    shorten_models()


@functools.cache
def _fuse_towers() -> None:
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VisionBlock

    from udfs.engine.tower_attention import attend_in_one_kernel

    after_making(Qwen2_5_VisionBlock, _quantize_in_block, named="fp8_rows")
    after_making(Qwen2_5_VisionBlock, attend_in_one_kernel, named="window_attention")


def after_making(
    layer: Any, change: Callable[[Any], None], *, named: str, of_subclasses: bool = False
) -> None:
    """Has `change` called with every layer of a class that is made from now on, where it is on.

    What it raises leaves a layer as it is, and the log says so.

    Args:
        layer: the class.
        change: what to do with a layer.
        named: under which name it is switched on and off.
        of_subclasses: whether layers of its subclasses are meant, too, which may be made further after it.
    """
    make = layer.__init__

    @functools.wraps(make)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        try:
            if is_on(named) and (of_subclasses or type(self) is layer):
                change(self)
        except Exception as error:
            _tell(f"{type(self).__name__}, {type(error).__name__}", str(error))

    layer.__init__ = made


def quantize_before_products(layer: Any) -> None:
    """Has a decoder layer's norms and activation quantize what is multiplied next."""
    _quantize_in_norm(layer, "input_layernorm", layer.self_attn.qkv_proj)
    _quantize_in_norm(layer, "post_attention_layernorm", layer.mlp.gate_up_proj)
    _quantize_in_activation(layer.mlp)


def _quantize_in_block(block: Any) -> None:
    _quantize_in_norm(block, "norm1", block.attn.qkv)
    _quantize_in_norm(block, "norm2", block.mlp.gate_up_proj)
    _quantize_in_activation(block.mlp)


def _quantize_in_norm(layer: Any, name: str, product: Any) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    norm = getattr(layer, name)
    plain = type(norm) is RMSNorm and norm.has_weight and norm.variance_size_override is None
    if plain and _takes_quantized(product):
        norm.__class__ = _quantizing_norm()


def _quantize_in_activation(mlp: Any) -> None:
    from vllm.model_executor.layers.activation import SiluAndMul

    if type(mlp.act_fn) is SiluAndMul and _takes_quantized(mlp.down_proj):
        # Layers may share one.
        mlp.act_fn = copy.copy(mlp.act_fn)
        mlp.act_fn.__class__ = _quantizing_activation()


def _takes_quantized(product: Any) -> bool:
    from vllm.config import get_current_vllm_config

    from udfs.engine.fp8_product import takes_quantized

    # What LoRA adds to a product needs numbers as they were.
    return get_current_vllm_config().lora_config is None and takes_quantized(product)


@functools.cache
def _quantizing_norm() -> type:
    import torch
    from vllm.model_executor.layers.layernorm import RMSNorm

    from udfs.engine.fp8_product import Quantized

    class QuantizingNorm(RMSNorm):  # type: ignore[misc, unused-ignore]
        def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
            rows, weight, epsilon = x.view(-1, x.shape[-1]), self.weight.data, self.variance_epsilon
            if residual is None:
                values, scales = torch.ops.vllm.norm_and_quantize(rows, weight, epsilon)
                return Quantized(values.view(x.shape), scales)
            values, scales, sums = torch.ops.vllm.add_norm_and_quantize(
                rows, residual.view(rows.shape), weight, epsilon
            )
            return Quantized(values.view(x.shape), scales), sums.view(x.shape)

    return QuantizingNorm


@functools.cache
def _quantizing_activation() -> type:
    import torch
    from vllm.model_executor.layers.activation import SiluAndMul

    from udfs.engine.fp8_product import Quantized

    class QuantizingSiluAndMul(SiluAndMul):  # type: ignore[misc, unused-ignore]
        def forward(self, x: torch.Tensor) -> Any:
            values, scales = torch.ops.vllm.silu_and_quantize(x.view(-1, x.shape[-1]))
            return Quantized(values.view(*x.shape[:-1], -1), scales)

    return QuantizingSiluAndMul
