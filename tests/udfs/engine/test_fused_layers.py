"""SiLU, its product and FP8 in one kernel: what it computes, and which layers of vLLM are given to it.

Triton's interpreter runs the kernel here, and its compiler compiles it for a card. `tests.gpu.smoke` compares
whole layers on one.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.checkout import ROOT
from udfs.engine import fused_layers
from udfs.engine.fused_layers import quantizes_product

LARGEST = torch.finfo(torch.float8_e4m3fn).max


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    """The module of the kernel, as the interpreter runs it."""
    name = "udfs.engine.silu_kernel"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module(name)
        del sys.modules[name]


# One block, two whole ones, a short second one, the published towers' and the smallest.
@pytest.mark.parametrize("width", [64, 96, 80, 3456, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_row_is_silu_times_the_other_half_over_its_largest_number(
    kernel: Any, width: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(width)
    gate_up = (torch.randn(5, 2 * width, generator=generator) * 3).to(dtype)
    gate, up = gate_up.double().chunk(2, dim=1)
    expected = torch.nn.functional.silu(gate) * up
    values, scales = kernel.silu_and_quantize(gate_up)
    assert (values.dtype, scales.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert (values.shape, scales.shape) == (expected.shape, (5, 1))
    largest = expected.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(scales.double() * LARGEST, largest, rtol=1e-5, atol=0)
    # Half a step of numbers with three bits behind the point. The interpreter (not the compiler) cuts the
    # smallest ones off, which are a whole step of 2**-9 then, and halves those rounded up to a power of two.
    error = (values.double() * scales - expected).abs()
    close = error <= expected.abs() * 2**-4 * 1.01 + scales * 2**-9
    rounded = (expected / scales).to(torch.float8_e4m3fn).double()
    rounded_up = (rounded.abs().frexp().mantissa == 0.5) & (rounded.abs() > (expected / scales).abs())
    assert (close | (rounded_up & (values.double() * 2 == rounded))).all()


def test_rows_of_zeros_and_no_rows_at_all_have_a_scale(kernel: Any) -> None:
    values, scales = kernel.silu_and_quantize(torch.zeros(2, 32, dtype=torch.bfloat16))
    assert not values.float().any()
    assert scales.tolist() == [[pytest.approx(kernel.SMALLEST_SCALE)]] * 2
    values, scales = kernel.silu_and_quantize(torch.zeros(0, 32, dtype=torch.bfloat16))
    assert (values.shape, scales.shape) == ((0, 16), (0, 1))


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from udfs.engine import silu_kernel

types = {"gate_up": "*bf16", "values": "*fp8e4nv", "scales": "*fp32"}
for capability in (89, 90):
    for width in (3456, 11008, 12288, 18944, 64):
        first, rest, warps = silu_kernel.blocks(width)
        constants = {"width": width, "first": first, "rest": rest}
        constants |= {"largest": silu_kernel.LARGEST, "smallest_scale": silu_kernel.SMALLEST_SCALE}
        signature = types | dict.fromkeys(constants, "constexpr")
        source = ASTSource(silu_kernel._silu_and_quantize, signature, constants)
        compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        # Each half of a row is read once, in one block or two.
        assert compiled.asm["ttir"].count("tt.load") == (4 if rest else 2)
        assert "e4m3x2" in compiled.asm["ptx"]
        print(capability, width)
"""


def test_it_compiles_for_cards_that_compute_in_8_bits(tmp_path: Path) -> None:
    # In a process of its own, since Triton's interpreter changes its language for good.
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    own |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10


def test_blocks_and_warps_are_powers_of_two_that_hold_a_row(kernel: Any) -> None:
    for width in range(1, 32_769):
        first, rest, warps = kernel.blocks(width)
        assert all(number & (number - 1) == 0 for number in (first, rest, warps))
        assert first <= width <= first + rest
        assert 4 <= warps <= 32
        assert first + rest < 2 * width or width == first


class Multiplies(torch.nn.Module):
    """A layer as vLLM's models have them."""

    def __init__(self, sides: int) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.sides


def test_a_layer_that_cannot_be_told_apart_computes_as_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer = type("Odd", (Multiplies,), {})
    fused_layers._fuse_activation(layer)
    with caplog.at_level("INFO"):
        odd = layer(3)
    assert odd(torch.ones(2)).tolist() == [3, 3]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("some of vLLM's layers stay as they are: Odd: ")
    assert "down_proj" in line
    # One that can, and says so, computes in the other way.
    monkeypatch.setattr(fused_layers, "quantizes_product", lambda made: made.sides == 4)
    monkeypatch.setattr(fused_layers, "_fused", lambda made, x: -x)
    assert layer(4)(torch.ones(1)).tolist() == [-1]
    assert layer(5)(torch.ones(1)).tolist() == [5]


def layer_of(activation: type, method: Any, tp_size: int = 1) -> SimpleNamespace:
    down = SimpleNamespace(quant_method=method, tp_size=tp_size)
    return SimpleNamespace(act_fn=object.__new__(activation), down_proj=down)


def test_only_layers_whose_last_product_takes_scales_for_tokens_quantize_it() -> None:
    from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel
    from vllm.model_executor.kernels.linear.scaled_mm.marlin import MarlinFP8ScaledMMLinearKernel
    from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
    from vllm.model_executor.layers.quantization.utils.quant_utils import (
        kFp8DynamicTensorSym,
        kFp8DynamicTokenSym,
        kFp8StaticTensorSym,
    )

    def method(key: Any, kernel: type = CutlassFP8ScaledMMLinearKernel) -> SimpleNamespace:
        multiplies = object.__new__(kernel)
        multiplies.config = SimpleNamespace(activation_quant_key=key)
        return SimpleNamespace(fp8_linear=multiplies)

    per_token = method(kFp8DynamicTokenSym)
    assert quantizes_product(layer_of(SiluAndMul, per_token))
    for other in (
        layer_of(GeluAndMul, per_token),
        layer_of(SiluAndMul, per_token, tp_size=2),
        layer_of(SiluAndMul, method(kFp8DynamicTensorSym)),
        layer_of(SiluAndMul, method(kFp8StaticTensorSym)),
        layer_of(SiluAndMul, method(kFp8DynamicTokenSym, MarlinFP8ScaledMMLinearKernel)),
        layer_of(SiluAndMul, SimpleNamespace()),
    ):
        assert not quantizes_product(other)
