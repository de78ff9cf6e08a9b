"""A pure module that pulls in Spark or torch would slow every worker and break the engine's clients."""

import subprocess
import sys

import pytest

MODULES = [
    "udfs",
    "udfs.clip_rows",
    "udfs.curator",
    "udfs.ffmpeg",
    "udfs.nal_units",
    "udfs.one_pass",
    "udfs.orientation",
    "udfs.preview",
    "udfs.previewing",
    "udfs.resize",
    "udfs.storage",
    "udfs.video",
    "udfs.video_decode",
    "udfs.video_packets",
    "udfs.video_probe",
    "udfs.video_reader",
    "udfs.video_smart",
    "udfs.video_source",
    "udfs.video_windows",
    "udfs.weights",
    "udfs.webp",
    "udfs.windowing",
    "udfs.writing",
]
HEAVY = ["pyspark", "torch", "vllm", "transformers", "pandas", "pyarrow"]


@pytest.mark.parametrize("module", MODULES)
def test_importing_a_pure_module_pulls_in_nothing_heavy(module: str) -> None:
    program = f"import {module}, sys; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
