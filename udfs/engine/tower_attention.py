"""Attention of Qwen2.5-VL's vision tower: most layers attend within small windows, and rotate first.

vLLM copies together what is rotated, rotates it in a kernel of its own, and has FlashAttention take windows
of 64 patches for long sequences. `window_attention` does all of it in one kernel that reads everything once.
Layers that attend to whole frames, if these are larger, do what vLLM does.
"""

import functools
from typing import Any

import torch

FLASH_ATTENTION = "FLASH_ATTN"


def attend_rotated(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    bounds: torch.Tensor,
    longest: torch.Tensor,
    heads: int,
    scale: float,
    fa_version: int | None,
) -> torch.Tensor:
    """Returns attention within sequences, of what is rotated before.

    Args:
        qkv: shape (tokens, 3 * width): what asks, what is asked and what is given, all heads of each.
        cos: shape (tokens, width / heads / 2).
        sin: the same.
        bounds: shape (sequences + 1,) of `int32`: where sequences begin and end.
        longest: the longest sequence, one number in the CPU's memory.
        heads: into which `width` is divided.
        scale: of products.
        fa_version: of FlashAttention, for long sequences.

    Returns:
        Shape (tokens, width).
    """
    from udfs.engine.window_attention import LONGEST, attend_in_windows

    if longest.item() <= LONGEST:
        return attend_in_windows(qkv, cos, sin, bounds, heads, scale)
    rotate, attend = _kernels_of_vllm()
    tokens = len(qkv)
    qk, v = qkv.view(1, tokens, 3 * heads, -1).split((2 * heads, heads), dim=2)
    q, k = rotate(qk, cos, sin, False).chunk(2, dim=2)
    return attend(q, k, v, 1, False, fa_version, scale, bounds, longest).reshape(tokens, -1)


def _kernels_of_vllm() -> tuple[Any, Any]:
    from vllm.v1.attention.ops.vit_attn_wrappers import flash_attn_maxseqlen_wrapper
    from vllm.vllm_flash_attn.layers.rotary import apply_rotary_emb

    return apply_rotary_emb, flash_attn_maxseqlen_wrapper


def empty_result(qkv: torch.Tensor, *_: Any) -> torch.Tensor:
    """Returns a tensor of the result's shape and type, with nothing in it."""
    from udfs.engine.window_attention import empty_context

    return empty_context(qkv)


def attend_in_one_kernel(block: Any) -> None:
    """Has a block of the tower do so, where it would use FlashAttention with numbers of 16 bits."""
    attention = block.attn
    flash = attention.attn.attn_backend.name == FLASH_ATTENTION
    if flash and torch.get_default_dtype() in (torch.bfloat16, torch.float16):
        # What is asked for in each step is asked for now, when it may be missing.
        _kernels_of_vllm()
        _settings_of(attention)
        attention.__class__ = _rotating_attention()


def _settings_of(attention: Any) -> tuple[int, float, int | None]:
    """Returns its number of heads, what products are multiplied by, and the version of FlashAttention."""
    return attention.num_attention_heads_per_partition, attention.attn.scale, attention.attn._fa_version


@functools.cache
def _rotating_attention() -> type:
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VisionAttention
    from vllm.utils.torch_utils import direct_register_custom_op

    direct_register_custom_op("attend_rotated", attend_rotated, fake_impl=empty_result)

    class RotatingAttention(Qwen2_5_VisionAttention):  # type: ignore[misc, unused-ignore]
        def forward(
            self,
            x: torch.Tensor,
            cu_seqlens: torch.Tensor,
            rotary_pos_emb_cos: torch.Tensor,
            rotary_pos_emb_sin: torch.Tensor,
            max_seqlen: torch.Tensor,
            sequence_lengths: torch.Tensor | None,
        ) -> torch.Tensor:
            qkv, _ = self.qkv(x)
            context = torch.ops.vllm.attend_rotated(
                qkv.view(-1, qkv.shape[-1]),
                rotary_pos_emb_cos,
                rotary_pos_emb_sin,
                cu_seqlens,
                max_seqlen,
                *_settings_of(self),
            )
            output, _ = self.proj(context.view(*qkv.shape[:-1], -1))
            return output

    return RotatingAttention
