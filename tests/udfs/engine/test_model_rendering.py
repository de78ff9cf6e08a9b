"""What vLLM makes of a window, for both families of models: token ids and times, read back."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine_fixtures import DemoModels
from tests.udfs.engine.qwen3_checkpoint import make_qwen3_checkpoint
from udfs.engine.launch import host_environment
from udfs.engine.runtime import Place
from udfs.engine.slot import Slot


def render_windows(model: Path, dtype: str) -> list[dict[str, Any]]:
    slot = Slot.of_process()
    command = [sys.executable, "-m", "tests.udfs.engine.render_windows", str(model), dtype]
    environment = host_environment(slot, Place.of(slot, "render"), sys.executable)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("WINDOW")]
    return [json.loads(line.removeprefix("WINDOW")) for line in lines]


def test_qwen3_reads_the_real_time_of_each_pair_of_frames(demo_models: DemoModels, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = make_qwen3_checkpoint(tmp_path / "qwen3", demo_models.vision)
    tokenizer = AutoTokenizer.from_pretrained(model)
    windows = render_windows(model, "float32")
    shown = [tokenizer.decode(window["token_ids"]) for window in windows]
    pads = "<|video_pad|>" * (224 // 32) ** 2
    expected = [["0.2", "1.2"], ["0.2", "1.1", "2.2", "3.1"], ["0.0", "0.1"]]
    for text, seconds in zip(shown, expected, strict=True):
        video = "".join(f"<{s} seconds><|vision_start|>{pads}<|vision_end|>" for s in seconds)
        assert f"<|im_start|>user\n{video}Describe the video in detail.<|im_end|>" in text
    assert windows[1]["timestamps"] == pytest.approx([0.2, 1.15, 2.25, 3.1])


def test_qwen25_knows_the_real_spacing_in_bfloat16_too(demo_models: DemoModels) -> None:
    windows = render_windows(demo_models.vision, "bfloat16")
    assert [w["seconds"] for w in windows] == pytest.approx([1.0, 2 * 3.1 / 6, 2 * 0.1 / 3], abs=1e-6)
    video_id = max(windows[0]["token_ids"])
    assert [w["token_ids"].count(video_id) for w in windows] == [2 * 64, 4 * 64, 2 * 64]
