"""SiLU of one half times the other, and what comes of it in FP8 with a scale for each row, in one kernel.

Needs Triton, so nothing imports this but a worker on a card. With `TRITON_INTERPRET=1` it runs on the CPU.
"""

import torch
import triton
import triton.language as tl

LARGEST = 448.0
"""Of the numbers that FP8 (e4m3) has."""

SMALLEST_SCALE = 1.0 / (LARGEST * 512.0)
"""So that rows of nothing but zeros are divided by something; vLLM's is the same."""


@triton.jit  # type: ignore[untyped-decorator]
def _silu_and_quantize(  # type: ignore[no-untyped-def]  # noqa: ANN202
    gate_up,  # noqa: ANN001 (Triton's compiler reads annotations, and knows none but its own)
    values,  # noqa: ANN001
    scales,  # noqa: ANN001
    width: tl.constexpr,
    first: tl.constexpr,
    rest: tl.constexpr,
    largest: tl.constexpr,
    smallest_scale: tl.constexpr,
):
    # A row is read once and stays in registers: in two blocks, since blocks are powers of two.
    row = tl.program_id(0).to(tl.int64)
    gate_up += row * 2 * width
    values += row * width
    at = tl.arange(0, first)
    gate = tl.load(gate_up + at).to(tl.float32)
    begin = gate * tl.sigmoid(gate) * tl.load(gate_up + width + at).to(tl.float32)
    most = tl.max(tl.abs(begin), 0)
    if rest > 0:
        behind = first + tl.arange(0, rest)
        inside = behind < width
        gate = tl.load(gate_up + behind, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_up + width + behind, mask=inside, other=0.0).to(tl.float32)
        end = gate * tl.sigmoid(gate) * up
        most = tl.maximum(most, tl.max(tl.abs(end), 0))
    scale = tl.maximum(most / largest, smallest_scale)
    tl.store(scales + row, scale)
    inverse = 1.0 / scale
    begin = tl.clamp(begin * inverse, -largest, largest)
    tl.store(values + at, begin.to(values.dtype.element_ty))
    if rest > 0:
        end = tl.clamp(end * inverse, -largest, largest)
        tl.store(values + behind, end.to(values.dtype.element_ty), mask=inside)


def silu_and_quantize(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns SiLU of each row's first half times the second half, in 8 bits, and the scale of each row.

    Args:
        gate_up: shape (rows, 2 * width), contiguous, of floats.

    Returns:
        Shape (rows, width) of `float8_e4m3fn`, and (rows, 1) of `float32`; their product is the result.
    """
    assert gate_up.is_contiguous()
    values, scales = empty_like_result(gate_up)
    rows, width = values.shape
    if rows:
        first, rest, warps = blocks(width)
        _silu_and_quantize[(rows,)](
            gate_up, values, scales, width, first, rest, LARGEST, SMALLEST_SCALE, num_warps=warps
        )
    return values, scales


def blocks(width: int) -> tuple[int, int, int]:
    """Returns the sizes of a row's two blocks, the second maybe 0, and the warps that share them.

    >>> blocks(18_944)
    (16384, 4096, 32)
    """
    first = 2 ** (width.bit_length() - 1)
    rest = triton.next_power_of_2(width - first) if width > first else 0
    return first, rest, min(32, max(4, triton.next_power_of_2((first + rest) // 512)))


def empty_like_result(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns tensors of the result's shapes and types, with nothing in them."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    return (
        torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=gate_up.device),
        torch.empty((rows, 1), dtype=torch.float32, device=gate_up.device),
    )
