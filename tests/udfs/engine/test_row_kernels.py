"""Norms, activations and FP8 in one kernel: what they compute, and that they can be compiled for cards.

Triton's interpreter runs the kernels here, and its compiler compiles them for a card. `tests.gpu.smoke`
compares whole layers on one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.udfs.engine.own_process import run_python
from udfs.engine.row_kernels import SMALLEST_SCALE, blocks

LARGEST = torch.finfo(torch.float8_e4m3fn).max
EPSILON = 1e-6
# One block, two whole ones, a short second one, the published towers' and the smallest.
WIDTHS = (64, 96, 80, 3456, 1)
DTYPES = (torch.bfloat16, torch.float16)
KERNELS = ("silu_and_quantize", "quantize_rows", "norm_and_quantize", "add_norm_and_quantize")

INTERPRET = """
import sys
import torch
from udfs.engine import row_kernels

given = torch.load(sys.argv[1])
torch.save([getattr(row_kernels, name)(*arguments) for name, arguments in given], sys.argv[2])
"""


def arguments_of(kernel: str, width: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Rows whose numbers are of very different sizes, and what else a kernel takes."""
    generator = torch.Generator().manual_seed(width)
    factor = 2 if kernel == "silu_and_quantize" else 1
    rows, others = (
        torch.randn(5, factor * width, generator=generator) * torch.tensor([[3.0], [1], [0.01], [20], [3]])
        for _ in range(2)
    )
    weight = 1 + torch.randn(width, generator=generator) / 4
    return {
        "silu_and_quantize": (rows.to(dtype),),
        "quantize_rows": (rows.to(dtype),),
        "norm_and_quantize": (rows.to(dtype), weight.to(dtype), EPSILON),
        "add_norm_and_quantize": (rows.to(dtype), others.to(dtype), weight.to(dtype), EPSILON),
    }[kernel]


def silu(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def norm(rows: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return torch.nn.functional.rms_norm(rows.double(), weight.shape, weight.double(), epsilon)


EXPECTED: dict[str, Callable[..., torch.Tensor]] = {
    "silu_and_quantize": silu,
    "quantize_rows": lambda rows: rows.double(),
    "norm_and_quantize": norm,
    "add_norm_and_quantize": lambda rows, others, *rest: norm(rows.double() + others.double(), *rest),
}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, tuple[Any, ...]]:
    """What goes into kernels, and what the interpreter has come out of them."""
    folder = tmp_path_factory.mktemp("interpreted")
    given: dict[Any, tuple[Any, ...]] = {
        (kernel, width, dtype): arguments_of(kernel, width, dtype)
        for kernel in KERNELS
        for width in WIDTHS
        for dtype in DTYPES
    }
    weight = torch.ones(16)
    for kernel, rest in (("silu_and_quantize", ()), ("norm_and_quantize", (weight, EPSILON))):
        width = 32 if kernel == "silu_and_quantize" else 16
        given |= {(kernel, "zeros"): (torch.zeros(2, width), *rest)}
        given |= {(kernel, "nothing"): (torch.zeros(0, width), *rest)}
    given["quantize_rows", "columns"] = (torch.arange(12.0).view(3, 4).t(),)
    calls = [(name[0], arguments) for name, arguments in given.items()]
    torch.save(calls, folder / "given.pt")
    run_python(INTERPRET, folder, str(folder / "given.pt"), str(folder / "results.pt"), TRITON_INTERPRET="1")
    results = torch.load(folder / "results.pt")
    return {name: (given[name], out) for name, out in zip(given, results, strict=True)}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_what_it_should_be_over_its_largest_number(
    interpreted: dict[Any, tuple[Any, ...]], kernel: str, width: int, dtype: torch.dtype
) -> None:
    arguments, (values, scales, *_) = interpreted[kernel, width, dtype]
    expected = EXPECTED[kernel](*arguments)
    assert (values.dtype, scales.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert (values.shape, scales.shape) == (expected.shape, (5, 1))
    largest = expected.abs().amax(dim=1, keepdim=True)
    wanted = (largest / LARGEST).clamp(min=SMALLEST_SCALE.value)
    torch.testing.assert_close(scales.double(), wanted, rtol=1e-5, atol=0)
    # Half a step of numbers with three bits behind the point. The interpreter (not the compiler) cuts the
    # smallest ones off, which are a whole step of 2**-9 then, and halves those rounded up to a power of two.
    error = (values.double() * scales - expected).abs()
    close = error <= expected.abs() * 2**-4 * 1.01 + scales * 2**-9
    rounded = (expected / scales).to(torch.float8_e4m3fn).double()
    rounded_up = (rounded.abs().frexp().mantissa == 0.5) & (rounded.abs() > (expected / scales).abs())
    assert (close | (rounded_up & (values.double() * 2 == rounded))).all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_kept_in_the_type_of_the_rows(
    interpreted: dict[Any, tuple[Any, ...]], width: int, dtype: torch.dtype
) -> None:
    (rows, others, *_), (_, _, sums) = interpreted["add_norm_and_quantize", width, dtype]
    # The interpreter (not the compiler) cuts off what bfloat16 has no room for.
    step = 2**-7 if dtype is torch.bfloat16 else 0
    torch.testing.assert_close(sums, (rows.float() + others.float()).to(dtype), rtol=step, atol=0)


@pytest.mark.parametrize("kernel", ["silu_and_quantize", "norm_and_quantize"])
def test_rows_of_zeros_and_no_rows_at_all_have_a_scale(
    interpreted: dict[Any, tuple[Any, ...]], kernel: str
) -> None:
    _, (values, scales) = interpreted[kernel, "zeros"]
    assert not values.float().any()
    assert scales.tolist() == [[pytest.approx(SMALLEST_SCALE.value)]] * 2
    _, (values, scales) = interpreted[kernel, "nothing"]
    assert (values.shape, scales.shape) == ((0, 16), (0, 1))


def test_rows_may_lie_anyhow_in_memory(interpreted: dict[Any, tuple[Any, ...]]) -> None:
    (rows,), (values, scales) = interpreted["quantize_rows", "columns"]
    torch.testing.assert_close(values.float() * scales, rows, rtol=2**-4, atol=0.01)


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from udfs.engine import row_kernels

results = {"values": "*fp8e4nv", "scales": "*fp32"}
silu = row_kernels._silu_kernel, {"gate_up": "*bf16"} | results, {}
pointers = dict.fromkeys(("rows", "others", "weight", "sums"), "*bf16") | results
norm = row_kernels._norm_kernel, pointers | {"epsilon": "fp32"}


def left_out(*names):
    return dict.fromkeys(names)


cases = [(*silu, 2, 0, width) for width in (3456, 11008, 12288, 18944, 64)]
for width in (1280, 3584, 5120, 64):
    cases += [
        (*norm, left_out("others", "weight", "sums") | {"adds": False, "norms": False}, 1, 0, width),
        (*norm, left_out("others", "sums") | {"adds": False, "norms": True}, 2, 0, width),
        (*norm, {"adds": True, "norms": True}, 3, 1, width),
    ]
for capability in (89, 90, 100, 120):
    for kernel, types, chosen, reads, sums, width in cases:
        first, rest, warps = row_kernels.blocks(width)
        constants = chosen | {"width": width, "first": first, "rest": rest}
        signature = types | dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, signature, constants)
        compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        # Everything is read once, in one block or two, and written once.
        blocks = 2 if rest else 1
        ttir = compiled.asm["ttir"]
        assert ttir.count("tt.load") == reads * blocks, (width, chosen)
        assert ttir.count("tt.store") == (1 + sums) * blocks + 1, (width, chosen)
        assert "e4m3x2" in compiled.asm["ptx"]
        print(capability, width)
"""


def test_they_compile_for_cards_that_compute_in_8_bits(tmp_path: Path) -> None:
    assert len(run_python(COMPILE, tmp_path).splitlines()) == 4 * (5 + 4 * 3)


def test_blocks_and_warps_are_powers_of_two_that_hold_a_row() -> None:
    for width in range(1, 32_769):
        first, rest, warps = blocks(width)
        assert all(number & (number - 1) == 0 for number in (first, rest, warps))
        assert first <= width <= first + rest
        assert 4 <= warps <= 32
        assert first + rest < 2 * width or width == first
