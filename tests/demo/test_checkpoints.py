"""The committed checkpoints load under both lines of transformers, and are the same models there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.make_checkpoints import TEXT_ID, VISION_ID
from tests.checkout import ROOT
from tests.engine_fixtures import CHECKPOINTS

pytestmark = pytest.mark.models

OLDER = ROOT / ".venv" / "transformers-4.57.6"
LINES = {"4.57.6": [str(OLDER)], "5.22.2": []}
"""What stands in front of the environment's own packages."""

PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np, torch, transformers
from tests.udfs.engine.reference import TextReference, VisionReference
from tests.udfs.engine.requests_maker import caption_request

vision_folder, text_folder, out = map(Path, sys.argv[1:])
frames = np.random.default_rng(4).integers(0, 256, (6, 112, 168, 3), dtype=np.uint8)
request = caption_request("fixed", frames=frames, times_s=0.4 * np.arange(6))
vision, text = VisionReference(vision_folder), TextReference(text_folder)
seen = vision.inputs(request, "What moves?")
positions = vision.positions(seen, request.times_s)[:, None]
read = text.inputs("A red circle moves left.", "Rewrite it.")
with torch.no_grad():
    shown = {name: seen[name] for name in ("input_ids", "pixel_values_videos", "video_grid_thw")}
    arrays = {"vision": vision.model(**shown, position_ids=positions).logits.numpy()}
    arrays |= {"text": text.model(**read).logits.numpy()}
arrays |= {"pixels": seen["pixel_values_videos"].numpy(), "vision_ids": seen["input_ids"].numpy()}
np.savez(out, text_ids=read["input_ids"].numpy(), **arrays)
keys = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
wrong = [str(one) for model in (vision, text) for key in keys for one in model.loading.get(key) or ()]
classes = [type(one).__name__ for one in (vision.model, vision.processor, text.model, text.tokenizer)]
print(json.dumps({"version": transformers.__version__, "wrong": wrong, "classes": classes}))
"""


def load_under(version: str, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Loads both checkpoints under a version in a process of its own; returns what it says and computes."""
    paths = [*LINES[version], str(ROOT)]
    models = [str(CHECKPOINTS / name) for name in (VISION_ID, TEXT_ID)]
    out = folder / f"{version}.npz"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *models, str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), dict(np.load(out))


def test_both_lines_of_transformers_load_the_same_models(tmp_path: Path) -> None:
    if not OLDER.is_dir():
        pytest.fail(f"{OLDER} is missing; make {OLDER.relative_to(ROOT)}/.installed makes it")
    found = {version: load_under(version, tmp_path) for version in LINES}
    for version, (said, _) in found.items():
        assert (said["version"], said["wrong"]) == (version, [])
        vision, processor, text, tokenizer = said["classes"]
        assert (vision, processor) == ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor")
        assert text == "Qwen2ForCausalLM"
        assert tokenizer.startswith("Qwen2Tokenizer")
    (_, older), (_, newer) = found.values()
    for name in ("vision_ids", "text_ids"):
        assert np.array_equal(older[name], newer[name])
    for name in ("pixels", "vision", "text"):
        np.testing.assert_allclose(older[name], newer[name], atol=1e-4, rtol=0)
    assert np.abs(newer["vision"]).max() > 1
    assert np.abs(newer["text"]).max() > 1
