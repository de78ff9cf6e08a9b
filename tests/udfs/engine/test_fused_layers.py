"""Which of vLLM's layers hand on rows in 8 bits, and that they compute what they did.

`tests.gpu.smoke` compares the layers of whole models on a card.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.udfs.engine.own_process import run_python
from udfs.engine import fused_layers
from udfs.engine.fp8_product import row_product, takes_quantized


@pytest.fixture
def config() -> Iterator[Any]:
    """vLLM's configuration of the model that is being made."""
    from vllm.config import VllmConfig, set_current_vllm_config

    made = VllmConfig()
    with set_current_vllm_config(made):
        yield made


def test_a_layer_that_cannot_be_told_apart_computes_as_ever(
    caplog: pytest.LogCaptureFixture, config: Any
) -> None:
    class Odd(torch.nn.Module):
        def __init__(self, sides: int) -> None:
            super().__init__()
            self.sides = sides

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.sides

    fused_layers.after_making(Odd, fused_layers.quantize_before_products, named="fp8_rows")
    with caplog.at_level("INFO"):
        odd = Odd(3)
    assert odd(torch.ones(2)).tolist() == [3, 3]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("some of vLLM's layers stay as they are, and may be slower: Odd, AttributeError: ")
    assert "self_attn" in line
    # Where it is switched off, nobody looks.
    config.additional_config = {"captionlake_fp8_rows": False}
    fused_layers._tell.cache_clear()
    caplog.clear()
    with caplog.at_level("INFO"):
        Odd(3)
    assert not caplog.records


def config_of(out_dtype: torch.dtype | None = torch.bfloat16, **changes: Any) -> SimpleNamespace:
    from vllm.model_executor.layers.quantization.utils.quant_utils import (
        kFp8DynamicTokenSym,
        kFp8StaticTensorSym,
    )

    known = {
        "activation_quant_key": kFp8DynamicTokenSym,
        "weight_quant_key": kFp8StaticTensorSym,
        "weight_shape": (64, 128),
        "out_dtype": out_dtype,
    }
    return SimpleNamespace(**known | changes)


def test_only_products_with_scales_for_tokens_quantize_rows(config: Any) -> None:
    from vllm.model_executor.layers.quantization.utils.quant_utils import (
        kFp8DynamicTensorSym,
        kFp8StaticTensorSym,
    )

    kernel: Any = row_product()
    assert kernel.can_implement(config_of()) == (True, None)
    for other in (
        config_of(activation_quant_key=kFp8DynamicTensorSym),
        config_of(activation_quant_key=kFp8StaticTensorSym),
        config_of(weight_shape=(64, 3420)),
        config_of(None),
    ):
        can, reason = kernel.can_implement(other)
        assert not can
        assert reason
    config.additional_config = {"captionlake_fp8_rows": False}
    assert kernel.can_implement(config_of()) == (False, "is switched off")


def test_vllm_takes_it_where_it_would_take_cutlass(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel
    from vllm.platforms import PlatformEnum, current_platform

    from udfs.engine import fp8_product

    ours: Any = row_product()
    known = linear._POSSIBLE_FP8_KERNELS[PlatformEnum.CUDA]
    monkeypatch.setitem(linear._POSSIBLE_FP8_KERNELS, PlatformEnum.CUDA, list(known))
    monkeypatch.setattr(type(current_platform), "_enum", PlatformEnum.CUDA)
    fp8_product.offer_row_product.__wrapped__()
    offered = linear._POSSIBLE_FP8_KERNELS[PlatformEnum.CUDA]
    assert [kernel for kernel in offered if kernel is not ours] == known
    assert offered.index(ours) + 1 == offered.index(CutlassFP8ScaledMMLinearKernel)
    made = object.__new__(ours)
    assert takes_quantized(SimpleNamespace(quant_method=SimpleNamespace(fp8_linear=made)))
    theirs = object.__new__(CutlassFP8ScaledMMLinearKernel)
    assert not takes_quantized(SimpleNamespace(quant_method=SimpleNamespace(fp8_linear=theirs)))
    assert not takes_quantized(torch.nn.Linear(2, 2))


FUSE = """
import sys
import torch
from torch.nn.functional import linear
from types import SimpleNamespace
from vllm import _custom_ops
from vllm.config import LoRAConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from udfs.engine.fp8_product import register_operations, row_product
from udfs.engine.fused_layers import quantize_before_products


def multiply(a, b, scale_a, scale_b, out_dtype, bias=None):
    product = (a.float() * scale_a) @ (b.float() * scale_b)
    return (product if bias is None else product + bias).to(out_dtype)


# Only what a card does is done otherwise here.
_custom_ops.cutlass_scaled_mm = multiply
register_operations()


class Linear(torch.nn.Module):
    def __init__(self, inputs, outputs, fp8):
        super().__init__()
        self.exact = torch.randn(outputs, inputs) / inputs**0.5
        self.bias = torch.randn(outputs)
        kernel = None
        if fp8:
            scale = self.exact.abs().max() / 448
            kernel = object.__new__(row_product())
            kernel.config = SimpleNamespace(out_dtype=torch.float32)
            kernel.layer_param_names = "weight", "weight_scale", "input_scale", "input_scale_ub"
            weight = (self.exact / scale).to(torch.float8_e4m3fn).t()
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
            self.weight_scale = torch.nn.Parameter(scale.reshape(1), requires_grad=False)
            kernel.process_weights_after_loading(self)
            assert self.weight_scale.shape == (1, outputs)
        self.quant_method = SimpleNamespace(fp8_linear=kernel)

    def forward(self, x):
        kernel = self.quant_method.fp8_linear
        if kernel is None:
            return linear(x, self.exact, self.bias), None
        return kernel.apply_weights(self, x, self.bias), None


class Attention(torch.nn.Module):
    def __init__(self, fp8):
        super().__init__()
        self.qkv_proj, self.o_proj = Linear(32, 96, fp8), Linear(32, 32, fp8)

    def forward(self, x):
        q, k, v = self.qkv_proj(x)[0].chunk(3, dim=-1)
        return self.o_proj(q * torch.sigmoid(k) + v)[0]


class MLP(torch.nn.Module):
    def __init__(self, fp8, activation):
        super().__init__()
        self.gate_up_proj, self.down_proj = Linear(32, 96, fp8), Linear(48, 32, fp8)
        self.act_fn = activation

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_up_proj(x)[0]))[0]


class Layer(torch.nn.Module):
    def __init__(self, fp8, activation):
        super().__init__()
        torch.manual_seed(0)
        self.self_attn, self.mlp = Attention(fp8), MLP(fp8, activation)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(32), RMSNorm(32)
        for norm in (self.input_layernorm, self.post_attention_layernorm):
            norm.weight.data += torch.randn(32) / 4
        quantize_before_products(self)

    def forward(self, x, residual=None):
        if residual is None:
            residual, x = x, self.input_layernorm(x)
        else:
            x, residual = self.input_layernorm(x, residual)
        x, residual = self.post_attention_layernorm(self.self_attn(x), residual)
        return self.mlp(x), residual


def names(layer):
    parts = layer.input_layernorm, layer.post_attention_layernorm, layer.mlp.act_fn
    return [type(part).__name__ for part in parts]


config = VllmConfig()
with set_current_vllm_config(config), torch.inference_mode():
    shared = SiluAndMul()
    fused, plain = Layer(True, shared), Layer(False, shared)
    assert names(fused) == ["QuantizingNorm", "QuantizingNorm", "QuantizingSiluAndMul"]
    assert names(plain) == ["RMSNorm", "RMSNorm", "SiluAndMul"]
    assert names(Layer(True, GeluAndMul())) == ["QuantizingNorm", "QuantizingNorm", "GeluAndMul"]
    for shape in ((5, 32), (5, 1, 32)):
        x, residual = torch.randn(shape), torch.randn(shape)
        for given in ((x,), (x, residual)):
            ours, theirs = fused(*given), plain(*given)
            compiled = torch.compile(fused, fullgraph=True, dynamic=True, backend="aot_eager")(*given)
            for one, other, again in zip(ours, theirs, compiled):
                assert one.shape == other.shape
                assert torch.equal(one, again)
                print(((one - other).norm() / other.norm()).item())
    config.lora_config = object.__new__(LoRAConfig)
    assert names(Layer(True, shared)) == ["RMSNorm", "RMSNorm", "SiluAndMul"]
"""


@pytest.mark.models
def test_a_fused_layer_computes_what_it_did_and_can_be_compiled(tmp_path: Path) -> None:
    told = run_python(FUSE, tmp_path, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    errors = list(map(float, told.splitlines()[-8:]))
    assert len(errors) == 8
    assert all(0 < error < 0.1 for error in errors)
