"""Rotation and attention within windows in one kernel: what it computes, and what it becomes on cards.

Triton's interpreter runs the kernel here, and its compiler compiles it for a card.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.udfs.engine.own_process import run_python
from udfs.engine.window_attention import HEADS_AT_ONCE, blocks, shape_for

HEAD_DIMS = (80, 64, 16)
# Whole windows, short ones, one of a single token, an empty one between others, empty ones behind all.
LENGTHS = {"whole": (64,), "short": (17,), "single": (1,), "mixed": (64, 0, 17, 1, 50, 0, 0)}
DTYPES = (torch.bfloat16, torch.float16)
HEADS = 6

INTERPRET = """
import sys
import numpy
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
from udfs.engine.window_attention import attend_in_windows

multiply = InterpreterBuilder.create_dot


def create_dot(self, a, b, *others):
    return multiply(self, widened(a), widened(b), *others)


def widened(handle):
    # The interpreter takes the bits of bfloat16 for integers in products.
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(numpy.uint32) << 16).view(numpy.float32), tl.float32)


InterpreterBuilder.create_dot = create_dot
torch.save([attend_in_windows(*one) for one in torch.load(sys.argv[1])], sys.argv[2])
"""

Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, float]


def make(head_dim: int, lengths: tuple[int, ...], dtype: torch.dtype, heads: int = HEADS) -> Given:
    """What goes into the kernel; scores are large enough that a softmax makes much of some tokens."""
    generator = torch.Generator().manual_seed(head_dim + sum(lengths))
    tokens = sum(lengths)
    qkv = torch.randn(tokens, 3 * heads * head_dim, generator=generator) * 1.5
    angles = torch.rand(tokens, head_dim // 2, generator=generator) * 30
    bounds = torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)
    return qkv.to(dtype), angles.cos().to(dtype), angles.sin().to(dtype), bounds, heads, head_dim**-0.5


def attend(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bounds: torch.Tensor, heads: int, scale: float
) -> torch.Tensor:
    """What the kernel computes, in `float64` but for the rotated numbers, one window after another."""
    q, k, v = qkv.double().view(len(qkv), 3, heads, -1).unbind(1)
    angles = torch.complex(cos.double(), sin.double())[:, None]
    q, k = (
        torch.cat((turned.real, turned.imag), dim=-1).to(qkv.dtype).double()
        for turned in (torch.complex(*one.chunk(2, dim=-1)) * angles for one in (q, k))
    )
    results = []
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], k[begin:end]) * scale
        results.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[begin:end]))
    return torch.cat(results).flatten(1)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, tuple[Given, torch.Tensor]]:
    """What goes into the kernel, and what the interpreter has come out of it."""
    folder = tmp_path_factory.mktemp("interpreted")
    given: dict[Any, Given] = {
        (head_dim, name, dtype): make(head_dim, lengths, dtype)
        for head_dim in HEAD_DIMS
        for name, lengths in LENGTHS.items()
        for dtype in DTYPES
    }
    qkv, cos, sin, *others = make(80, (5, 3), torch.float16, heads=3)
    given["longest head"] = make(128, (20, 7), torch.float16, heads=1)
    given["float32"] = (qkv, cos.float(), sin.float(), *others)
    given["no tokens"] = make(16, (0,), torch.float16)
    given["no windows"] = make(16, (), torch.float16)
    torch.save(list(given.values()), folder / "given.pt")
    run_python(INTERPRET, folder, str(folder / "given.pt"), str(folder / "results.pt"), TRITON_INTERPRET="1")
    results = torch.load(folder / "results.pt")
    return {name: (one, result) for (name, one), result in zip(given.items(), results, strict=True)}


def check(given: Given, result: torch.Tensor) -> None:
    expected = attend(*given)
    assert (result.dtype, result.shape) == (given[0].dtype, expected.shape)
    # The interpreter (not the compiler) cuts bfloat16's last bits off where they should be rounded.
    tolerance = 4e-4 if result.dtype == torch.float16 else 1.5e-2
    error = (result.double() - expected).view(len(result), given[4], -1).norm(dim=-1)
    lengths = expected.view(len(result), given[4], -1).norm(dim=-1)
    assert error.norm() <= tolerance * lengths.norm()
    # No token and no head stands out.
    assert (error <= 4 * tolerance * lengths.mean()).all()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_attend_to_those_of_their_window_rotated(
    interpreted: dict[Any, tuple[Given, torch.Tensor]], head_dim: int, lengths: str, dtype: torch.dtype
) -> None:
    check(*interpreted[head_dim, lengths, dtype])


def test_a_rotation_may_be_more_exact_than_what_it_rotates(
    interpreted: dict[Any, tuple[Given, torch.Tensor]],
) -> None:
    check(*interpreted["float32"])


def test_a_head_may_have_up_to_128_numbers(interpreted: dict[Any, tuple[Given, torch.Tensor]]) -> None:
    check(*interpreted["longest head"])


def test_nothing_comes_of_nothing(interpreted: dict[Any, tuple[Given, torch.Tensor]]) -> None:
    for name in ("no tokens", "no windows"):
        assert interpreted[name][1].shape == (0, HEADS * 16)


COMPILE = """
import json
import re
import subprocess
import sys
from triton import compile, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from udfs.engine import window_attention as subject

given = ("qkv", "cos", "sin", "bounds", "result")
types = dict.fromkeys(given, "*bf16") | {"bounds": "*i32", "factor": "fp32"}
aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(given))}
for capability, half in json.loads(sys.argv[2]):
    constants = subject.shape_for(16, half)
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(subject._attend_in_windows, signature, constants, aligned)
    options = {"num_warps": subject.WARPS} | ({"maxnreg": subject.REGISTERS} if capability == 90 else {})
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with open(sys.argv[1], "wb") as cubin:
        cubin.write(compiled.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", sys.argv[1]]
    usage = subprocess.run(command, capture_output=True, text=True, check=True)
    registers, stack = re.search("REG:([0-9]+) STACK:([0-9]+)", usage.stdout + usage.stderr).groups()
    ptx = compiled.asm["ptx"]
    told = {"shared": compiled.metadata.shared, "registers": int(registers), "stack": int(stack)}
    told["products"] = [name for name in ("wgmma.mma_async", "tcgen05.mma", "mma.sync") if name in ptx]
    told |= {"wide": ptx.count("0x10,"), "narrow": ptx.count("0x4,")}
    print(json.dumps(told))
"""

# Of Ampere, Ada, Hopper, Blackwell, and Blackwell's smaller cards.
PRODUCTS = {80: "mma.sync", 89: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}


def test_it_compiles_for_cards(tmp_path: Path) -> None:
    cases = [(card, 40) for card in PRODUCTS] + [(card, half) for card in (89, 90) for half in (32, 8)]
    lines = run_python(COMPILE, tmp_path, str(tmp_path / "it"), json.dumps(cases)).splitlines()
    for (card, _), line in zip(cases, lines, strict=True):
        told = json.loads(line)
        assert told["products"] == [PRODUCTS[card]], card
        # Memory comes in pieces of 16 bytes, or 8, past the registers.
        assert told["wide"] and not told["narrow"], card
        # Half of what Ada has for a program.
        assert told["shared"] <= 50 * 1024 or card == 90
        assert told["stack"] <= (128 if card == 120 else 16 if card < 90 else 0), card
        if card == 90:
            # Three programs share a multiprocessor: its registers, and its 228 KiB of memory.
            assert told["registers"] <= 168
            assert 3 * (told["shared"] + 1024) <= 228 * 1024


FUSE = """
import sys
import torch
from vllm.utils.torch_utils import direct_register_custom_op
from udfs.engine.window_attention import attend_in_windows, empty_context

fake = lambda qkv, *_: empty_context(qkv)
direct_register_custom_op("attend_in_windows", attend_in_windows, fake_impl=fake)


def layer(qkv, cos, sin, bounds, heads, scale):
    return torch.ops.vllm.attend_in_windows(qkv + 1, cos, sin, bounds, heads, scale) * 2


compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
for given in torch.load(sys.argv[1]):
    result = compiled(*given)
    assert torch.equal(result, layer(*given))
    print(*result.shape)
torch.library.opcheck(torch.ops.vllm.attend_in_windows.default, given, test_utils="test_faketensor")
"""


@pytest.mark.models
def test_what_is_around_it_can_be_compiled(tmp_path: Path) -> None:
    given = [make(16, lengths, torch.float16) for lengths in ((17, 9), (64, 2, 1))]
    torch.save(given, tmp_path / "given.pt")
    told = run_python(FUSE, tmp_path, str(tmp_path / "given.pt"), TRITON_INTERPRET="1")
    assert told.splitlines()[-2:] == ["26 96", "67 96"]


def test_blocks_are_powers_of_two_that_hold_a_row() -> None:
    for width in range(1, 257):
        block, rest = blocks(width)
        assert all(number & (number - 1) == 0 for number in (block, rest))
        assert block >= 16 and (rest >= 16 or not rest)
        assert (rest > 0) <= (block < width)
        assert width <= block + rest < max(2 * width, 17)


def test_heads_are_shared_out_evenly() -> None:
    for heads in range(1, 33):
        at_once = shape_for(heads, 40)["heads_at_once"]
        assert heads % at_once == 0 and at_once <= HEADS_AT_ONCE
    assert shape_for(16, 40)["heads_at_once"] == HEADS_AT_ONCE
