"""Parity with transformers on a model that the suite has no engine for."""

import subprocess
from pathlib import Path

import pytest

from conf.engine import EngineSettings, RenderSettings
from tests.engine_fixtures import LOAD_TIMEOUT_S, DemoModels
from tests.udfs.engine.parity import assert_passes_equal, passes_of, window_requests
from tests.udfs.engine.qwen3_checkpoint import SMALL_QWEN3, make_qwen3_checkpoint
from tests.udfs.engine.reference import VisionReference
from udfs.engine.client import EngineClient
from udfs.engine.slot import Slot

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
    # An owner of its own, so that no engine of the suite has to make room.
    with subprocess.Popen(["sleep", "600"]) as owner:
        try:
            with EngineClient(settings, Slot.of_process(owner.pid)) as client:
                client.wait_ready(LOAD_TIMEOUT_S)
                assert client.status()["takes_frames"] is True
                passes = passes_of(client, requests, records)
                client.stop_host()
        finally:
            owner.kill()
    assert_passes_equal(passes, VisionReference(model), model, tmp_path / "rendered")
