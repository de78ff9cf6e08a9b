"""Parity with transformers on a model that the suite has no engine for."""

from pathlib import Path

import pytest

from conf.engine import EngineSettings, RenderSettings
from tests.engine_fixtures import DemoModels
from tests.udfs.engine.parity import assert_passes_equal, own_engine, passes_of, window_requests
from tests.udfs.engine.qwen3_checkpoint import SMALL_QWEN3, make_qwen3_checkpoint
from tests.udfs.engine.reference import VisionReference

pytestmark = pytest.mark.models


def test_captions_and_second_passes_of_qwen3_vl_are_those_of_transformers(
    random_models: DemoModels, tmp_path: Path
) -> None:
    model = make_qwen3_checkpoint(tmp_path / "qwen3", random_models.vision, with_weights=True)
    records = tmp_path / "records"
    settings = EngineSettings(
        model_path=str(model),
        kind="caption",
        dtype="float32",
        max_model_len=4096,
        render=RenderSettings.of_variant(SMALL_QWEN3, record_dir=str(records)),
    )
    requests = window_requests(tmp_path, SMALL_QWEN3)
    with own_engine(settings) as client:
        status = client.status()
        assert status["takes_frames"] is status["remembers_grids"] is True
        passes = passes_of(client, requests, records)
    assert_passes_equal(passes, VisionReference(model), model, tmp_path / "rendered")
