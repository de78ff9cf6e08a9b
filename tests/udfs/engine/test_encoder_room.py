"""Every step has videos, also where it is scheduled before the last one has ended."""

from pathlib import Path

from tests.engine_fixtures import DemoModels
from tests.udfs.engine.scheduled_videos import videos_of_steps
from udfs.engine.fused_layers import switches
from udfs.engine.vllm_compat import TWO_STEPS


def test_a_step_that_is_scheduled_ahead_has_videos_as_well(random_models: DemoModels, tmp_path: Path) -> None:
    off = switches(TWO_STEPS, on=False)
    roomy, vllm_s, one_by_one = videos_of_steps(
        random_models.vision,
        tmp_path,
        [
            {"ahead": True, "additional_config": {}},
            {"ahead": True, "additional_config": off},
            {"ahead": False, "additional_config": {}},
        ],
    )
    assert roomy == one_by_one == [2, 2, 2, 2, 2, 2]
    assert vllm_s == [2, 0, 2, 0, 2, 0]
