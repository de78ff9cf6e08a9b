"""What becomes of rows of numbers before they are multiplied in FP8: each kernel reads them once.

A row gets a scale of its own, which is known only when all of it has been seen. Meanwhile it stays in
registers, whatever is done with it before: a norm, or an activation and its product.

Needs Triton, so nothing imports this but a worker on a card. With `TRITON_INTERPRET=1` it runs on the CPU.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)
"""Of the numbers that FP8 (e4m3) has."""

SMALLEST_SCALE = tl.constexpr(1.0 / (448.0 * 512.0))
"""So that rows of nothing but zeros are divided by something; vLLM's is the same."""

# Kernels have a row in two blocks, `first` and `rest`, since blocks are powers of two. Nothing is annotated:
# Triton's compiler reads annotations, and knows none but its own.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="untyped-decorator, no-untyped-def"


@triton.jit
def _keep_scale(most, scales, row):
    """Stores the scale of a row whose largest number is `most`; returns the inverse of it."""
    scale = tl.maximum(most / LARGEST, SMALLEST_SCALE)
    tl.store(scales + row, scale)
    return 1.0 / scale


@triton.jit
def _keep(numbers, inverse, places, inside):
    """Stores numbers in 8 bits."""
    scaled = tl.clamp(numbers * inverse, -LARGEST, LARGEST)
    tl.store(places, scaled.to(places.dtype.element_ty), mask=inside)


@triton.jit
def _multiplied(gate, up):
    """SiLU of one number times the other."""
    gate = gate.to(tl.float32)
    return gate * tl.sigmoid(gate) * up.to(tl.float32)


@triton.jit
def _silu_kernel(gate_up, values, scales, width: tl.constexpr, first: tl.constexpr, rest: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    gate_up += row * 2 * width
    values += row * width
    at = tl.arange(0, first)
    begin = _multiplied(tl.load(gate_up + at), tl.load(gate_up + width + at))
    most = tl.max(tl.abs(begin), 0)
    if rest > 0:
        behind = first + tl.arange(0, rest)
        inside = behind < width
        gate = tl.load(gate_up + behind, mask=inside, other=0.0)
        end = _multiplied(gate, tl.load(gate_up + width + behind, mask=inside, other=0.0))
        most = tl.maximum(most, tl.max(tl.abs(end), 0))
    inverse = _keep_scale(most, scales, row)
    _keep(begin, inverse, values + at, at < width)
    if rest > 0:
        _keep(end, inverse, values + behind, inside)


@triton.jit
def _norm_kernel(
    rows,
    others,
    weight,
    sums,
    values,
    scales,
    epsilon,
    width: tl.constexpr,
    first: tl.constexpr,
    rest: tl.constexpr,
    adds: tl.constexpr,
    norms: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = row * width
    at = tl.arange(0, first)
    begin = tl.load(rows + start + at).to(tl.float32)
    if rest > 0:
        behind = first + tl.arange(0, rest)
        inside = behind < width
        end = tl.load(rows + start + behind, mask=inside, other=0.0).to(tl.float32)
    if adds:
        begin += tl.load(others + start + at).to(tl.float32)
        tl.store(sums + start + at, begin.to(sums.dtype.element_ty))
        if rest > 0:
            end += tl.load(others + start + behind, mask=inside, other=0.0).to(tl.float32)
            tl.store(sums + start + behind, end.to(sums.dtype.element_ty), mask=inside)
    if norms:
        squares = tl.sum(begin * begin, 0)
        if rest > 0:
            squares += tl.sum(end * end, 0)
        factor = tl.rsqrt(squares / width + epsilon)
        begin *= factor * tl.load(weight + at).to(tl.float32)
        if rest > 0:
            end *= factor * tl.load(weight + behind, mask=inside, other=0.0).to(tl.float32)
    most = tl.max(tl.abs(begin), 0)
    if rest > 0:
        most = tl.maximum(most, tl.max(tl.abs(end), 0))
    inverse = _keep_scale(most, scales, row)
    _keep(begin, inverse, values + start + at, at < width)
    if rest > 0:
        _keep(end, inverse, values + start + behind, inside)


def silu_and_quantize(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns SiLU of each row's first half times the second half, in 8 bits, and the scale of each row.

    Args:
        gate_up: shape (rows, 2 * width), of floats.

    Returns:
        Shape (rows, width) of `float8_e4m3fn`, and (rows, 1) of `float32`; their product is the result.
    """
    gate_up = gate_up.contiguous()
    values, scales = silu_results(gate_up)
    rows, width = values.shape
    if rows:
        first, rest, warps = blocks(width)
        _silu_kernel[(rows,)](gate_up, values, scales, width, first, rest, num_warps=warps)
    return values, scales


def silu_results(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns tensors of the result's shapes and types, with nothing in them."""
    return _results(gate_up, gate_up.shape[1] // 2)


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows in 8 bits, and the scale of each.

    Args:
        rows: shape (rows, width), of floats.

    Returns:
        Shape (rows, width) of `float8_e4m3fn`, and (rows, 1) of `float32`.
    """
    values, scales = row_results(rows)
    _run_norm(rows, None, None, None, values, scales, 0.0)
    return values, scales


def row_results(rows: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns tensors of the result's shapes and types, with nothing in them."""
    return _results(rows, rows.shape[1])


def norm_and_quantize(
    rows: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows over the root of their mean square, times a weight, in 8 bits, and the scale of each.

    Args:
        rows: shape (rows, width), of floats.
        weight: shape (width,).
        epsilon: what is added to the mean square.

    Returns:
        Shape (rows, width) of `float8_e4m3fn`, and (rows, 1) of `float32`.
    """
    values, scales = row_results(rows)
    _run_norm(rows, None, weight, None, values, scales, epsilon)
    return values, scales


def add_norm_and_quantize(
    rows: torch.Tensor, others: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Does `norm_and_quantize` with the sum of two rows each, and returns the sums behind what that does.

    Args:
        rows: shape (rows, width), of floats.
        others: the same.
        weight: shape (width,).
        epsilon: what is added to the mean square.

    Returns:
        Shape (rows, width) of `float8_e4m3fn`, (rows, 1) of `float32`, and the sums in the type of `rows`.
    """
    values, scales, sums = add_norm_results(rows)
    _run_norm(rows, others, weight, sums, values, scales, epsilon)
    return values, scales, sums


def add_norm_results(rows: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns tensors of the result's shapes and types, with nothing in them."""
    return *row_results(rows), torch.empty_like(rows, memory_format=torch.contiguous_format)


def _run_norm(
    rows: torch.Tensor,
    others: torch.Tensor | None,
    weight: torch.Tensor | None,
    sums: torch.Tensor | None,
    values: torch.Tensor,
    scales: torch.Tensor,
    epsilon: float,
) -> None:
    """Adds `others`, applies a norm and quantizes; what is None is left out."""
    height, width = rows.shape
    if height:
        first, rest, warps = blocks(width)
        _norm_kernel[(height,)](
            rows.contiguous(),
            None if others is None else others.contiguous(),
            weight,
            sums,
            values,
            scales,
            epsilon,
            width,
            first,
            rest,
            others is not None,
            weight is not None,
            num_warps=warps,
        )


def _results(like: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.empty((like.shape[0], width), dtype=torch.float8_e4m3fn, device=like.device),
        torch.empty((like.shape[0], 1), dtype=torch.float32, device=like.device),
    )


@functools.cache
def blocks(width: int) -> tuple[int, int, int]:
    """Returns the sizes of a row's two blocks, the second maybe 0, and the warps that share them.

    >>> blocks(18_944)
    (16384, 4096, 32)
    """
    first = 2 ** (width.bit_length() - 1)
    rest = triton.next_power_of_2(width - first) if width > first else 0
    return first, rest, min(32, max(4, triton.next_power_of_2((first + rest) // 512)))
