"""Layers of 8 bits that quantize the product of their activation in the kernel that computes it.

vLLM compiles these two steps into one kernel as well, but that one reads everything twice: a token's scale is
known only when all of the token has been seen. In `silu_kernel` it stays in registers meanwhile.
"""

import functools
import logging
from typing import Any

logger = logging.getLogger(__name__)


@functools.cache
def fuse_activation(*, of_towers: bool) -> None:
    """Has vLLM's models of Qwen's kind do so from now on, on NVIDIA's cards.

    With a version of vLLM whose models are built otherwise, everything stays as it is, and the log says so.

    Args:
        of_towers: vision towers as well as language models.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return
    try:
        layers = _layers(of_towers)
        _register()
        for layer in layers:
            _fuse(layer)
    except (ImportError, AttributeError) as error:
        logger.info("vLLM's layers of 8 bits stay as they are: %s", error)


def _layers(of_towers: bool) -> list[Any]:
    """Returns vLLM's classes of layers that multiply SiLU of one half of a product with the other half."""
    from vllm.model_executor.models.qwen2 import Qwen2MLP

    if not of_towers:
        return [Qwen2MLP]
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VisionMLP

    return [Qwen2MLP, Qwen2_5_VisionMLP]


def _register() -> None:
    """Makes the kernel known to torch, which compiles what is around it."""
    from vllm.utils.torch_utils import direct_register_custom_op

    from udfs.engine.silu_kernel import empty_like_result, silu_and_quantize

    direct_register_custom_op("silu_and_quantize", silu_and_quantize, fake_impl=empty_like_result)


def _fuse(layer: Any) -> None:
    """Changes a class of layers."""
    make, compute = layer.__init__, layer.forward

    @functools.wraps(make)
    def made(self: Any, *args: Any, **named: Any) -> None:
        make(self, *args, **named)
        self.quantizes_product = quantizes_product(self)

    @functools.wraps(compute)
    def forward(self: Any, x: Any) -> Any:
        return _fused(self, x) if self.quantizes_product else compute(self, x)

    layer.__init__, layer.forward = made, forward


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
