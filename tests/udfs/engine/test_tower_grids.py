"""What a vision tower works out from grids: that it is kept, and joined as the tower would work it out."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests.udfs.engine.extension import extension_of
from tests.udfs.engine.own_process import run_python
from udfs.engine.tower_grids import Remembering, join


class Tower:
    """Works out as many numbers as a video has patches, as vLLM's towers do, and counts how often."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def prepare_encoder_metadata(self, grids: Any, **more: Any) -> dict[str, Any]:
        self.asked.append(grids)
        patches = sum(map(math.prod, grids))
        return {"window_index": torch.arange(patches), "sequence_lengths": None, **more}


class OtherTower(Tower):
    """One that works out something of another kind."""

    def prepare_encoder_metadata(self, grids: Any, **more: Any) -> dict[str, Any]:
        return super().prepare_encoder_metadata(grids, **more) | {"sizes": torch.tensor(len(grids))}


class WideTower(Tower):
    """One that counts in another type where there are several videos."""

    def prepare_encoder_metadata(self, grids: Any, **more: Any) -> dict[str, Any]:
        found = super().prepare_encoder_metadata(grids, **more)
        return found | {
            "window_index": found["window_index"].int() if len(grids) == 1 else found["window_index"]
        }


class PaddingTower(Tower):
    """One that needs lengths where there are several videos."""

    def prepare_encoder_metadata(self, grids: Any, **more: Any) -> dict[str, Any]:
        found = super().prepare_encoder_metadata(grids, **more)
        return found | ({"sequence_lengths": torch.tensor([1])} if len(grids) > 1 else {})


class BackwardTower(Tower):
    """One whose numbers fall from one video to the next."""

    def prepare_encoder_metadata(self, grids: Any, **more: Any) -> dict[str, Any]:
        found = super().prepare_encoder_metadata(grids, **more)
        return found | {"window_index": found["window_index"].flip(0)}


def test_a_tower_works_out_once_what_depends_on_nothing_but_a_grid() -> None:
    tower = Tower()
    assert extension_of(SimpleNamespace(visual=tower)).remember_grids() is True
    tower.asked.clear()
    first = tower.prepare_encoder_metadata([[2, 4, 4], [1, 4, 4]])
    assert first["window_index"].tolist() == list(range(48)) and first["sequence_lengths"] is None
    tower.prepare_encoder_metadata([[1, 4, 4], [2, 4, 4], [1, 4, 4]])
    assert tower.asked == [[[2, 4, 4]], [[1, 4, 4]]]
    assert tower.prepare_encoder_metadata([[2, 4, 4]], device="cpu")["device"] == "cpu"
    assert len(tower.asked) == 3, "where more is said than grids"


@pytest.mark.parametrize(
    ("tower", "reason"),
    [
        (OtherTower(), "sizes"),
        (BackwardTower(), "together they give something else"),
        (WideTower(), "together they give something else"),
        (PaddingTower(), "together they give something else"),
    ],
)
def test_what_cannot_be_joined_is_kept_for_each_list_of_grids(
    tower: Tower, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert extension_of(SimpleNamespace(visual=tower)).remember_grids() is False
    assert reason in caplog.text
    kept: Any = tower.prepare_encoder_metadata
    tower.asked.clear()
    first = kept([[2, 4, 4], [1, 4, 4]])
    assert kept([[2, 4, 4], [1, 4, 4]]) is first and tower.asked == [[[2, 4, 4], [1, 4, 4]]]
    assert first["window_index"].sum() == sum(range(48))


def test_what_a_tower_keeps_is_bounded() -> None:
    tower = Tower()
    kept = Remembering(tower.prepare_encoder_metadata, most_bytes=8 * 32)

    def worked_out(grids: list[list[int]]) -> bool:
        before = len(tower.asked)
        assert len(kept(grids)["window_index"]) == sum(map(math.prod, grids))
        return len(tower.asked) > before

    small, other, large = [[1, 2, 4]], [[1, 4, 4]], [[4, 4, 4]]
    assert worked_out(small) and worked_out(other) and not worked_out(small)
    assert worked_out([[1, 4, 3]]), "the third does not fit beside the others"
    assert not worked_out(small), "the one that was asked for longest ago went"
    assert worked_out(other)
    assert worked_out(large) and worked_out(large), "what does not fit at all is not kept"
    assert not worked_out(other), "nor does anything go for it"


def test_what_is_joined_has_its_places_and_types() -> None:
    apart = [
        {
            "rotary_pos_emb_cos": torch.full((patches, 2), float(patches)),
            "reverse_indices": torch.arange(patches // 4).flip(0),
            "cu_seqlens": torch.tensor([0, patches // 2, patches], dtype=torch.int32),
            "max_seqlen": torch.tensor(patches // 2, dtype=torch.int32),
        }
        for patches in (16, 8)
    ]
    joined = join(apart, [(2, 2, 4), (2, 2, 2)])
    expected = {
        "rotary_pos_emb_cos": torch.tensor([[16.0, 16.0]] * 16 + [[8.0, 8.0]] * 8),
        "reverse_indices": torch.tensor([3, 2, 1, 0, 5, 4]),
        "cu_seqlens": torch.tensor([0, 8, 16, 20, 24], dtype=torch.int32),
        "max_seqlen": torch.tensor(8, dtype=torch.int32),
    }
    assert_close(joined, expected, rtol=0, atol=0)


TOWERS = """
import random, sys, torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.distributed.parallel_state import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VisionTransformer
from vllm.model_executor.models.qwen3_vl import Qwen3_VisionTransformer
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from torch.testing import assert_close
from udfs.engine.tower_grids import Remembering

small = dict(depth=2, hidden_size=128, intermediate_size=128, num_heads=2, out_hidden_size=128)
towers = {
    Qwen2_5_VisionTransformer: Qwen2_5_VLVisionConfig(**small, fullatt_block_indexes=[1]),
    Qwen3_VisionTransformer: Qwen3VLVisionConfig(**small, deepstack_visual_indexes=[0]),
}
sizes = random.Random(0)
with set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))), torch.inference_mode():
    init_distributed_environment(1, 0, f"file://{sys.argv[1]}/store", 0, "gloo")
    initialize_model_parallel()
    for make, config in towers.items():
        tower = make(config)
        tower.attn_backend = AttentionBackendEnum.FLASHINFER  # counts in other units
        assert not Remembering(tower.prepare_encoder_metadata).joins
        tower.attn_backend = AttentionBackendEnum.FLASH_ATTN
        kept = Remembering(tower.prepare_encoder_metadata)
        assert kept.joins
        for _ in range(30):
            grids = [[sizes.randint(1, 4), *(2 * sizes.randint(1, 9) for _ in 'hw')] for _ in range(3)]
            grids.append(grids[0])
            together = tower.prepare_encoder_metadata(grids)
            assert_close(kept(grids), together, rtol=0, atol=0)
            assert max(together[name] for name in together if name.startswith("max_seqlen")) > 0
        print(make.__name__)
"""


@pytest.mark.models
def test_towers_of_vllm_are_told_what_they_would_work_out(tmp_path: Path) -> None:
    told = run_python(TOWERS, tmp_path, str(tmp_path))
    assert told.splitlines()[-2:] == ["Qwen2_5_VisionTransformer", "Qwen3_VisionTransformer"]
