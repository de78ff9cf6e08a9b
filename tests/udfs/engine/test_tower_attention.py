"""Attention of the tower's layers: of windows and of whole frames, and beside what vLLM computes.

What FlashAttention does on a card is done by torch here. `tests.gpu.smoke` compares with it on one.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.udfs.engine.own_process import run_python
from udfs.engine import tower_attention

COMPARE = """
import sys
import types
import torch
import triton.runtime.interpreter as interpreter
from types import SimpleNamespace
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding.common import ApplyRotaryEmb
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VisionAttention
from vllm.v1.attention.ops import vit_attn_wrappers
from udfs.engine.tower_attention import _rotating_attention

TOKENS, HEADS, DIM = 90, 3, 16
torch.manual_seed(0)


def flash_attention(q, k, v, batch_size, is_rocm_aiter, fa_version, scale, cu_seqlens, max_seqlen):
    assert (batch_size, is_rocm_aiter, fa_version) == (1, False, 3)
    edges = cu_seqlens.tolist()
    assert max(end - begin for begin, end in zip(edges, edges[1:])) <= max_seqlen.item()
    parts = []
    for begin, end in zip(edges, edges[1:]):
        few = (x[:, begin:end].transpose(1, 2) for x in (q, k, v))
        parts.append(torch.nn.functional.scaled_dot_product_attention(*few, scale=scale).transpose(1, 2))
    return torch.cat(parts, dim=1)


def rotate(x, cos, sin, interleaved):
    assert not interleaved
    return ApplyRotaryEmb.forward_static(x, cos, sin, is_neox_style=True)


# What only a card has.
rotary = types.ModuleType("vllm.vllm_flash_attn.layers.rotary")
rotary.apply_rotary_emb = rotate
sys.modules |= {"vllm.vllm_flash_attn.layers": types.ModuleType("layers"), rotary.__name__: rotary}
vit_attn_wrappers.flash_attn_maxseqlen_wrapper = flash_attention


class Linear(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = torch.randn(outputs, inputs, dtype=torch.float16) / inputs**0.5

    def forward(self, x):
        return x @ self.weight.t(), None


class Attends(torch.nn.Module):
    scale, _fa_version = DIM**-0.5, 3

    def forward(self, query, key, value, cu_seqlens, max_seqlen, sequence_lengths):
        return flash_attention(query, key, value, 1, False, 3, self.scale, cu_seqlens, max_seqlen)


with set_current_vllm_config(VllmConfig()), torch.inference_mode():
    attention = Qwen2_5_VisionAttention.__new__(Qwen2_5_VisionAttention)
    torch.nn.Module.__init__(attention)
    attention.qkv, attention.proj = Linear(24, 3 * HEADS * DIM), Linear(HEADS * DIM, 24)
    attention.attn, attention.apply_rotary_emb = Attends(), ApplyRotaryEmb(enforce_enable=True)
    attention.num_attention_heads_per_partition, attention.hidden_size_per_attention_head = HEADS, DIM
    x = torch.randn(TOKENS, 1, 24, dtype=torch.float16)
    angles = torch.randn(TOKENS, DIM // 2)
    around = angles.cos().half(), angles.sin().half()
    for edges in ([0, 64, 81, 81, 90], [0, 80, 90]):
        bounds = torch.tensor(edges, dtype=torch.int32)
        given = bounds, *around, (bounds[1:] - bounds[:-1]).max(), None
        attention.__class__ = Qwen2_5_VisionAttention
        theirs = attention(x, *given)
        attention.__class__ = _rotating_attention()
        ours = attention(x, *given)
        compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")(x, *given)
        assert ours.shape == theirs.shape == compiled.shape
        assert torch.equal(ours, compiled)
        print(((ours - theirs).norm() / theirs.norm()).item())
"""


@pytest.mark.models
def test_windows_and_whole_frames_are_attended_to_as_vllm_does(tmp_path: Path) -> None:
    told = run_python(COMPARE, tmp_path, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    windows, frames = map(float, told.splitlines()[-2:])
    assert 0 < windows < 0.002
    assert 0 <= frames < 0.002


class Attention:
    """Of a block, with as much of it as is looked at."""

    num_attention_heads_per_partition = 2

    def __init__(self, backend: str, **known: Any) -> None:
        self.attn = SimpleNamespace(attn_backend=SimpleNamespace(name=backend), scale=0.25, **known)


class Rotating(Attention):
    """What it becomes."""


def test_only_flash_attention_of_16_bits_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(tower_attention, "_rotating_attention", lambda: Rotating)
    monkeypatch.setattr(tower_attention, "_kernels_of_vllm", lambda: asked.append(1))
    ordinary = torch.get_default_dtype()
    try:
        for dtype, backend, changed in (
            (torch.bfloat16, "FLASH_ATTN", True),
            (torch.float16, "FLASH_ATTN", True),
            (torch.float32, "FLASH_ATTN", False),
            (torch.bfloat16, "TORCH_SDPA", False),
        ):
            torch.set_default_dtype(dtype)
            block = SimpleNamespace(attn=Attention(backend, _fa_version=3))
            tower_attention.attend_in_one_kernel(block)
            assert isinstance(block.attn, Rotating) is changed
        assert len(asked) == 2
        # What it would miss later is missed now, and then it stays what it is.
        torch.set_default_dtype(torch.bfloat16)
        block = SimpleNamespace(attn=Attention("FLASH_ATTN"))
        with pytest.raises(AttributeError, match="_fa_version"):
            tower_attention.attend_in_one_kernel(block)
        assert not isinstance(block.attn, Rotating)
    finally:
        torch.set_default_dtype(ordinary)
