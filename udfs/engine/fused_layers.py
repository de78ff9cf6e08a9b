"""Layers of vLLM that do in one kernel, on a card, what vLLM does in two.

The product of an activation and its quantization to FP8: vLLM compiles them into one kernel as well, but that
one reads everything twice, since a token's scale is known only when all of the token has been seen. In
`silu_kernel` it stays in registers meanwhile.

The rotation of what a vision tower compares: vLLM copies it together, and a kernel of its own rotates it. The
compiler does both at once, when it is left to it.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

VERSION = 1
"""Of what is changed here: vLLM keeps compiled models, and would take one from before a change."""


def fuse_layers(*, of_towers: bool) -> None:
    """Has vLLM's models of Qwen's kind do so from now on, on NVIDIA's cards.

    What a version of vLLM builds otherwise stays as it is, and the log says so.

    Args:
        of_towers: vision towers as well as language models.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cuda():
        for change in (_fuse_language_models, _fuse_towers)[: 1 + of_towers]:
            try:
                change()
            except (ImportError, AttributeError) as error:
                _tell(str(error))


@functools.cache
def _tell(reason: str) -> None:
    logger.info("some of vLLM's layers stay as they are: %s", reason)


@functools.cache
def _fuse_language_models() -> None:
    from vllm.model_executor.models.qwen2 import Qwen2MLP
    from vllm.utils.torch_utils import direct_register_custom_op

    from udfs.engine.silu_kernel import empty_like_result, silu_and_quantize

    # So that torch can compile what is around the kernel.
    direct_register_custom_op("silu_and_quantize", silu_and_quantize, fake_impl=empty_like_result)
    _fuse_activation(Qwen2MLP)


@functools.cache
def _fuse_towers() -> None:
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VisionBlock, Qwen2_5_VisionMLP

    _fuse_activation(Qwen2_5_VisionMLP)
    _after_making(Qwen2_5_VisionBlock, _compile_rotation)


def _after_making(layer: Any, change: Callable[[Any], None]) -> None:
    """Has `change` called with every layer of a class that is made from now on."""
    make = layer.__init__

    @functools.wraps(make)
    def made(self: Any, *args: Any, **named: Any) -> None:
        make(self, *args, **named)
        try:
            change(self)
        except (ImportError, AttributeError) as error:
            _tell(f"{type(self).__name__}: {error}")

    layer.__init__ = made


def _compile_rotation(block: Any) -> None:
    """Leaves the rotation to the compiler, where the block is compiled."""
    if not block.do_not_compile:
        rotation = block.attn.apply_rotary_emb
        rotation._forward_method = rotation.forward_native


def _fuse_activation(layer: Any) -> None:
    """Has layers of a class quantize the product of their activation themselves, where they can."""
    compute = layer.forward

    def choose(made: Any) -> None:
        made.quantizes_product = quantizes_product(made)

    @functools.wraps(compute)
    def forward(self: Any, x: Any) -> Any:
        return _fused(self, x) if self.quantizes_product else compute(self, x)

    layer.quantizes_product = False
    _after_making(layer, choose)
    layer.forward = forward


def quantizes_product(layer: Any) -> bool:
    """Whether a layer's last product takes numbers of 8 bits with a scale for each token, made in each step.

    Only with CUTLASS, which is what vLLM chooses on Hopper, and where one card holds all of a layer.
    """
    from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel
    from vllm.model_executor.layers.activation import SiluAndMul

    last = layer.down_proj
    kernel: Any = getattr(last.quant_method, "fp8_linear", None)
    if type(layer.act_fn) is not SiluAndMul or type(kernel) is not CutlassFP8ScaledMMLinearKernel:
        return False
    scale = kernel.config.activation_quant_key.scale
    return scale.group_shape.is_per_token() and not scale.static and last.tp_size == 1


def _fused(layer: Any, x: Any) -> Any:
    import torch

    gate_up, _ = layer.gate_up_proj(x)
    values, scales = torch.ops.vllm.silu_and_quantize(gate_up.view(-1, gate_up.shape[-1]))
    last = layer.down_proj
    kernel = last.quant_method.fp8_linear
    weight, weight_scale, *_ = kernel._get_layer_params(last)
    return kernel.apply_scaled_mm(
        A=values,
        B=weight,
        out_dtype=gate_up.dtype,
        As=scales,
        Bs=weight_scale,
        bias=last.bias,
        output_shape=[*gate_up.shape[:-1], weight.shape[1]],
    )
