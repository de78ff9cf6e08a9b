"""SiLU, its product and FP8 in one kernel: what it computes, and which layers of vLLM are given to it.

Triton's interpreter runs the kernel here, and its compiler compiles it for a card. `tests.gpu.smoke` compares
whole layers on one.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.checkout import ROOT
from udfs.engine import fused_layers
from udfs.engine.fused_layers import quantizes_product
from udfs.engine.silu_kernel import SMALLEST_SCALE, blocks

LARGEST = torch.finfo(torch.float8_e4m3fn).max
# One block, two whole ones, a short second one, the published towers' and the smallest.
WIDTHS = (64, 96, 80, 3456, 1)
DTYPES = (torch.bfloat16, torch.float16)

INTERPRET = """
import sys
import torch
from udfs.engine.silu_kernel import silu_and_quantize

torch.save([silu_and_quantize(one) for one in torch.load(sys.argv[1])], sys.argv[2])
"""


def run_python(program: str, folder: Path, *arguments: str, **environment: str) -> str:
    """Runs a program in a process of its own: Triton looks at its environment when it is first imported."""
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    own |= {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, tuple[torch.Tensor, ...]]:
    """What goes into the kernel, and the numbers and scales that the interpreter has come out of it."""
    folder = tmp_path_factory.mktemp("interpreted")
    given: dict[Any, torch.Tensor] = {"zeros": torch.zeros(2, 32), "nothing": torch.zeros(0, 32)}
    for width in WIDTHS:
        numbers = torch.randn(5, 2 * width, generator=torch.Generator().manual_seed(width)) * 3
        given |= {(width, dtype): numbers.to(dtype) for dtype in DTYPES}
    torch.save(list(given.values()), folder / "given.pt")
    run_python(INTERPRET, folder, str(folder / "given.pt"), str(folder / "results.pt"), TRITON_INTERPRET="1")
    results = torch.load(folder / "results.pt")
    return {name: (gate_up, *out) for (name, gate_up), out in zip(given.items(), results, strict=True)}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_silu_times_the_other_half_over_its_largest_number(
    interpreted: dict[Any, tuple[torch.Tensor, ...]], width: int, dtype: torch.dtype
) -> None:
    gate_up, values, scales = interpreted[width, dtype]
    gate, up = gate_up.double().chunk(2, dim=1)
    expected = torch.nn.functional.silu(gate) * up
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


def test_rows_of_zeros_and_no_rows_at_all_have_a_scale(
    interpreted: dict[Any, tuple[torch.Tensor, ...]],
) -> None:
    _, values, scales = interpreted["zeros"]
    assert not values.float().any()
    assert scales.tolist() == [[pytest.approx(SMALLEST_SCALE)]] * 2
    _, values, scales = interpreted["nothing"]
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
    assert len(run_python(COMPILE, tmp_path).splitlines()) == 10


def test_blocks_and_warps_are_powers_of_two_that_hold_a_row() -> None:
    for width in range(1, 32_769):
        first, rest, warps = blocks(width)
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


FUSE = """
import torch
from torch.nn.functional import linear, silu
from types import SimpleNamespace
from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8DynamicTokenSym
from vllm.utils.torch_utils import direct_register_custom_op
from udfs.engine.fused_layers import _fuse_activation
from udfs.engine.silu_kernel import empty_like_result, silu_and_quantize


def multiply(*, A, B, out_dtype, As, Bs, bias, output_shape):
    return ((A.float() * As) @ (B * Bs) + bias).to(out_dtype).view(*output_shape)


class Linear(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = torch.randn(outputs, inputs), torch.randn(outputs)
        self.tp_size = 1
        # Only what a card does is done otherwise here.
        kernel = object.__new__(CutlassFP8ScaledMMLinearKernel)
        kernel.config = SimpleNamespace(activation_quant_key=kFp8DynamicTokenSym)
        kernel._get_layer_params = lambda layer: (layer.weight.t(), torch.ones(1), None, None)
        kernel.apply_scaled_mm = multiply
        self.quant_method = SimpleNamespace(fp8_linear=kernel)

    def forward(self, x):
        return linear(x, self.weight, self.bias), None


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj, self.down_proj = Linear(32, 96), Linear(48, 32)
        self.act_fn = SiluAndMul.__new__(SiluAndMul)
        torch.nn.Module.__init__(self.act_fn)

    def forward(self, x):
        gate, up = self.gate_up_proj(x)[0].chunk(2, dim=-1)
        return self.down_proj(silu(gate) * up)[0]


torch.manual_seed(0)
direct_register_custom_op("silu_and_quantize", silu_and_quantize, fake_impl=empty_like_result)
_fuse_activation(Layer)
layer, x = Layer(), torch.randn(5, 1, 32)
assert layer.quantizes_product
fused, plain = layer(x), Layer.forward.__wrapped__(layer, x)
assert fused.shape == plain.shape
compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")(x)
assert torch.equal(compiled, fused)
print(((fused - plain).norm() / plain.norm()).item())
"""


def test_a_fused_layer_computes_what_it_did_and_can_be_compiled(tmp_path: Path) -> None:
    told = run_python(FUSE, tmp_path, TRITON_INTERPRET="1")
    assert 0 < float(told.splitlines()[-1]) < 0.1


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
