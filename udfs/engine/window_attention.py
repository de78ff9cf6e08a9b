"""Rotation of queries and keys, and attention within short windows, in one kernel.

Most layers of Qwen2.5-VL's vision tower attend within windows of at most 64 patches. What one head computes
for one window fits into registers, so queries, keys and values are read once, as their product leaves them,
and nothing is written but the result. vLLM copies queries and keys together, rotates them in a kernel of its
own, and has a kernel for long sequences attend: that reads and writes everything thrice.

Needs Triton, so nothing imports this but a worker on a card. With `TRITON_INTERPRET=1` it runs on the CPU.
"""

import functools
import math

import torch
import triton
import triton.language as tl

LONGEST = 64
"""Tokens of a window."""

HEADS_AT_ONCE = 4
"""That one program computes one after another, with the same rotation; fewer where heads do not divide so."""

STAGES = 2
"""Of a program's work on heads: with two, all that a head needs is asked for at once, and goes into shared
memory past the registers; with three, the next head's is on its way while one is computed, in more memory."""

WARPS = 4
"""That share what a program does: Hopper's instructions for products take no fewer."""

HOPPER = 9
REGISTERS = 168
"""Of a thread at most on Hopper, so that three programs of four warps fit on one of its multiprocessors."""

LOG2_E = 1 / math.log(2)
"""So that powers of two, which a card computes itself, are those of e."""

# Nothing is annotated but with what Triton's compiler knows, which reads annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="untyped-decorator, no-untyped-def"


@triton.jit
def _attend_in_windows(
    qkv,
    cos,
    sin,
    bounds,
    result,
    factor,
    heads: tl.constexpr,
    half: tl.constexpr,
    block: tl.constexpr,
    rest: tl.constexpr,
    value_block: tl.constexpr,
    value_rest: tl.constexpr,
    longest: tl.constexpr,
    heads_at_once: tl.constexpr,
    stages: tl.constexpr,
):
    # Programs of one window follow one another: they read parts of the same rows, and the same rotation.
    groups: tl.constexpr = heads // heads_at_once
    width: tl.constexpr = heads * half * 2
    window = tl.program_id(0) // groups
    first_head = tl.program_id(0) % groups * heads_at_once
    begin = tl.load(bounds + window)
    length = tl.load(bounds + window + 1) - begin
    if length <= 0:
        return
    begin = begin.to(tl.int64)
    cos += begin * half
    sin += begin * half
    qkv += begin * (3 * width) + first_head * (2 * half)
    result += begin * width + first_head * (2 * half)
    kept = tl.arange(0, longest) < length
    cosines = _load(cos, length, half, half, 0, block, longest)
    sines = _load(sin, length, half, half, 0, block, longest)
    if rest > 0:
        cosines_rest = _load(cos, length, half, half, block, rest, longest)
        sines_rest = _load(sin, length, half, half, block, rest, longest)
    for head in tl.range(0, heads_at_once, num_stages=stages):
        q = qkv + head * (2 * half)
        k = q + width
        v = k + width
        out = result + head * (2 * half)
        # Halves of a head come apart, in blocks of powers of two: 40 numbers in 32 and 16, not 80 in 128.
        q_left = _load(q, length, 3 * width, half, 0, block, longest)
        q_right = _load(q + half, length, 3 * width, half, 0, block, longest)
        k_left = _load(k, length, 3 * width, half, 0, block, longest)
        k_right = _load(k + half, length, 3 * width, half, 0, block, longest)
        if rest > 0:
            q_left_rest = _load(q, length, 3 * width, half, block, rest, longest)
            q_right_rest = _load(q + half, length, 3 * width, half, block, rest, longest)
            k_left_rest = _load(k, length, 3 * width, half, block, rest, longest)
            k_right_rest = _load(k + half, length, 3 * width, half, block, rest, longest)
        values = _load(v, length, 3 * width, 2 * half, 0, value_block, longest)
        if value_rest > 0:
            values_rest = _load(v, length, 3 * width, 2 * half, value_block, value_rest, longest)
        scores = tl.zeros((longest, longest), tl.float32)
        scores = _compare(q_left, q_right, k_left, k_right, cosines, sines, scores)
        if rest > 0:
            scores = _compare(
                q_left_rest, q_right_rest, k_left_rest, k_right_rest, cosines_rest, sines_rest, scores
            )
        scores = tl.where(kept[None, :], scores * factor, float("-inf"))
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        inverse = (1.0 / tl.sum(weights, 1))[:, None]
        weights = weights.to(values.dtype)
        mean = tl.dot(weights, values) * inverse
        _store(out, mean, length, width, 2 * half, 0, value_block, longest)
        if value_rest > 0:
            mean = tl.dot(weights, values_rest) * inverse
            _store(out, mean, length, width, 2 * half, value_block, value_rest, longest)


@triton.jit
def _compare(q_left, q_right, k_left, k_right, cosines, sines, scores):
    # Adds what the same columns of both halves make of the scores.
    q = _rotate(q_left, q_right, cosines, sines)
    k = _rotate(k_left, k_right, cosines, sines)
    return tl.dot(q, tl.trans(k), acc=scores)


@triton.jit
def _rotate(left, right, cosines, sines):
    x = left.to(tl.float32)
    y = right.to(tl.float32)
    c = cosines.to(tl.float32)
    s = sines.to(tl.float32)
    # A product takes its columns in any order, so these stay where they are: in the same thread.
    return tl.interleave((x * c - y * s).to(left.dtype), (y * c + x * s).to(left.dtype))


@triton.jit
def _load(
    source,
    length,
    stride: tl.constexpr,
    width: tl.constexpr,
    first: tl.constexpr,
    block: tl.constexpr,
    longest: tl.constexpr,
):
    # Columns from `first` on of `length` rows; zeros stand for what isn't there.
    rows = tl.arange(0, longest)[:, None]
    columns = first + tl.arange(0, block)[None, :]
    return tl.load(source + rows * stride + columns, mask=(rows < length) & (columns < width), other=0.0)


@triton.jit
def _store(
    target,
    numbers,
    length,
    stride: tl.constexpr,
    width: tl.constexpr,
    first: tl.constexpr,
    block: tl.constexpr,
    longest: tl.constexpr,
):
    rows = tl.arange(0, longest)[:, None]
    columns = first + tl.arange(0, block)[None, :]
    inside = (rows < length) & (columns < width)
    tl.store(target + rows * stride + columns, numbers.to(target.dtype.element_ty), mask=inside)


def attend_in_windows(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bounds: torch.Tensor, heads: int, scale: float
) -> torch.Tensor:
    """Returns what the tokens of each window make of each other's values, queries and keys rotated before.

    Args:
        qkv: shape (tokens, 3 * heads * head_dim), contiguous, `bfloat16` or `float16`: the queries of all
            heads, then their keys, then their values.
        cos: of the angles that tokens are rotated by, shape (tokens, head_dim // 2); number i of a head's
            first half is rotated with number i of its second half.
        sin: of the same angles.
        bounds: shape (windows + 1,), `int32`, the first zero and the last `tokens`: where windows begin and
            end. None has more than `LONGEST` tokens, which only the caller can know; some may have none.
        heads: how many.
        scale: that scores are multiplied by before the softmax.

    Returns:
        Shape (tokens, heads * head_dim), of `qkv`'s type.
    """
    assert qkv.is_contiguous() and qkv.shape[1] % (6 * heads) == 0
    half = qkv.shape[1] // (6 * heads)
    assert cos.shape == sin.shape == (qkv.shape[0], half) and bounds.is_contiguous()
    result = empty_context(qkv)
    windows = bounds.shape[0] - 1
    if windows > 0 and qkv.shape[0]:
        shape = shape_for(heads, half)
        programs = windows * (heads // shape["heads_at_once"])
        _attend_in_windows[(programs,)](
            qkv,
            cos.contiguous(),
            sin.contiguous(),
            bounds,
            result,
            scale * LOG2_E,
            **shape,
            num_warps=WARPS,
            maxnreg=most_registers(),
        )
    return result


@functools.cache
def most_registers() -> int | None:
    """Returns how many registers a thread may have, None for as many as it likes.

    That is Hopper's: other cards' instructions for products have operands in registers, too, and threads
    with few of these would keep hundreds of bytes in memory.
    """
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == HOPPER
    return REGISTERS if hopper else None


@functools.cache
def shape_for(heads: int, half: int) -> dict[str, int]:
    """Returns what the kernel is compiled for: `half` is half the numbers of a head.

    >>> shape_for(16, 40)["value_block"]
    64
    """
    block, rest = blocks(half)
    value_block, value_rest = blocks(2 * half)
    return {
        "heads": heads,
        "half": half,
        "block": block,
        "rest": rest,
        "value_block": value_block,
        "value_rest": value_rest,
        "longest": LONGEST,
        "heads_at_once": math.gcd(heads, HEADS_AT_ONCE),
        "stages": STAGES,
    }


def blocks(width: int) -> tuple[int, int]:
    """Returns the sizes of one block or two (the second is 0 otherwise) that hold `width` numbers of a row.

    Both are powers of two, and none is below 16, as products have it; two hold less than one would.

    >>> blocks(40), blocks(80), blocks(60), blocks(8)
    ((32, 16), (64, 16), (64, 0), (16, 0))
    """
    whole = max(16, triton.next_power_of_2(width))
    begin = whole // 2
    rest = max(16, triton.next_power_of_2(max(1, width - begin)))
    return (begin, rest) if begin + rest < whole else (whole, 0)


def empty_context(qkv: torch.Tensor) -> torch.Tensor:
    """Returns a tensor of the result's shape and type, with nothing in it."""
    return qkv.new_empty((qkv.shape[0], qkv.shape[1] // 3))
