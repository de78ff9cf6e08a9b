"""Products in FP8 whose left side has a scale for each row, as vLLM's layers compute them on NVIDIA's cards.

vLLM has the compiler quantize, which reads everything twice, and multiplies with CUTLASS. Here a kernel of
`row_kernels` quantizes, and what comes before may do so in its own kernel and hand on `Quantized`. On Hopper,
cuBLAS multiplies where there are many rows: its kernels draw less power, and power is what such a card lacks.
"""

import functools
from typing import Any, NamedTuple

import torch

LEAST_ROWS = 1024
"""For cuBLAS, which refuses some shapes with very few."""

HOPPER = (9, 0)


class Quantized(NamedTuple):
    """Numbers in 8 bits.

    Attributes:
        values: shape (..., width) of `float8_e4m3fn`.
        scales: shape (rows, 1) of `float32`, where `values` has that many rows in all.
    """

    values: torch.Tensor
    scales: torch.Tensor


@functools.cache
def register_operations() -> None:
    """Makes operations of torch, in `torch.ops.vllm`, so that it can compile what is around the kernels."""
    from vllm.utils.torch_utils import direct_register_custom_op

    from udfs.engine import row_kernels as kernels

    for operation, results in (
        (kernels.quantize_rows, kernels.row_results),
        (kernels.norm_and_quantize, kernels.row_results),
        (kernels.add_norm_and_quantize, kernels.add_norm_results),
        (kernels.silu_and_quantize, kernels.silu_results),
        (multiply_rows, empty_product),
    ):
        direct_register_custom_op(operation.__name__, operation, fake_impl=results)


def multiply_rows(
    values: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns a product.

    Args:
        values: shape (rows, inner) of `float8_e4m3fn`.
        scales: shape (rows, 1) of `float32`.
        weight: shape (inner, columns) of `float8_e4m3fn`, column after column in memory.
        weight_scales: shape (1, columns) of `float32`.
        bias: shape (columns,) of `dtype`.
        dtype: of the result.
    """
    # cuBLAS's scales for rows give nothing but this type.
    if len(values) >= LEAST_ROWS and dtype is torch.bfloat16 and _is_hopper():
        return torch._scaled_mm(
            values, weight, scales, weight_scales, bias=bias, out_dtype=dtype, use_fast_accum=True
        )
    from vllm import _custom_ops

    return _custom_ops.cutlass_scaled_mm(values, weight, scales, weight_scales, dtype, bias)


@functools.cache
def _is_hopper() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_device_capability(HOPPER))


def empty_product(
    values: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns a tensor of the product's shape and type, with nothing in it."""
    return torch.empty((values.shape[0], weight.shape[1]), dtype=dtype, device=values.device)


@functools.cache
def row_product() -> type:
    """Returns a kernel of vLLM's FP8 layers that quantizes rows by itself, and takes quantized ones."""
    from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel
    from vllm.model_executor.utils import replace_parameter

    from udfs.engine.fused_layers import is_on

    class RowProduct(CutlassFP8ScaledMMLinearKernel):  # type: ignore[misc, unused-ignore]
        @classmethod
        def can_implement(cls, c: Any) -> tuple[bool, str | None]:
            from vllm import envs

            scale = c.activation_quant_key.scale
            if scale.static or not scale.group_shape.is_per_token():
                return False, "needs a scale for each token, made in each step"
            if not is_on("fp8_rows") or envs.VLLM_BATCH_INVARIANT:
                return False, "is switched off"
            if c.out_dtype is None or any(side % 16 for side in c.weight_shape):
                return False, "needs a type of results, and sides of 16 numbers each"
            return True, None

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            super().process_weights_after_loading(layer)
            weight, scale, *_ = self._get_layer_params(layer)
            # A scale for each column, since cuBLAS takes scales for rows with those only.
            columns = scale.float().reshape(1, -1).expand(1, weight.shape[1])
            replace_parameter(layer, self.layer_param_names[1], columns.contiguous())

        def apply_weights(self, layer: torch.nn.Module, x: Any, bias: torch.Tensor | None = None) -> Any:
            weight, weight_scales, _, bound = self._get_layer_params(layer)
            if bound is not None:
                return super().apply_weights(layer, x, bias)
            if isinstance(x, Quantized):
                values, scales = x
                rows = values.view(-1, values.shape[-1])
            else:
                values = x
                rows, scales = torch.ops.vllm.quantize_rows(x.reshape(-1, x.shape[-1]))
            out = torch.ops.vllm.multiply_rows(
                rows, scales, weight, weight_scales, bias, self.config.out_dtype
            )
            return out.view(*values.shape[:-1], weight.shape[1])

    return RowProduct


@functools.cache
def offer_row_product() -> None:
    """Has vLLM choose this kernel where it would choose CUTLASS's."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms import current_platform

    register_operations()
    kernels = linear._POSSIBLE_FP8_KERNELS[current_platform._enum]
    kernels.insert(kernels.index(row_product().__bases__[0]), row_product())


def kernel_of(product: Any) -> Any:
    """Returns the kernel of a linear layer of vLLM's in FP8, wherever it is kept, or None."""
    method, scheme = (getattr(product, name, None) for name in ("quant_method", "scheme"))
    return getattr(method, "fp8_linear", None) or getattr(scheme, "fp8_linear", None)


def takes_quantized(product: Any) -> bool:
    """Whether a linear layer of vLLM's takes `Quantized`: not where a bound of its own is put to numbers."""
    bound = getattr(product, "input_scale_ub", None)
    return bound is None and isinstance(kernel_of(product), row_product())
