"""The application on two executors, which runs while other tests do: most of its time it waits."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from demo.make_clips import write_scene
from tests.cluster.app import ROOT
from tests.engine_fixtures import MAX_MODEL_LEN, DemoModels

NUM_CLIPS = 40
TIMEOUT_S = 840


@dataclass(frozen=True)
class ClusterApp:
    """The application and its folder."""

    folder: Path
    process: "subprocess.Popen[bytes]"

    @classmethod
    def started(cls, folder: Path, models: DemoModels, runtime: Path) -> "ClusterApp":
        """Starts it; `runtime` is the engines' runtime folder."""
        clips = folder / "clips"
        clips.mkdir()
        for seed in range(NUM_CLIPS):
            seconds = 0.4 + (seed * 7 % 11) * 0.45
            path = clips / f"clip_{seed:02}.mp4"
            write_scene(path, seed=seed, seconds=seconds, frame_rate=20, size=(112, 84))
        flags = {
            "--input-path": [str(clips)],
            "--output-path": str(folder / "lake"),
            "--generate-captions": True,
            "--model-variant": "demo",
            "--model-dir": str(models.model_dir),
            "--dtype": "float32",
            "--max-model-len": MAX_MODEL_LEN,
            "--temperature": 0.0,
            "--captioning-use-vllm-mmcache": True,
            "--captioning-max-output-tokens": 24,
            "--windows-per-commit": 14,
        }
        environment = {
            **os.environ,
            "CAPTIONLAKE_RUNTIME_DIR": str(runtime),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_WORKER_DIR": str(folder / "work"),
            "SPARK_LOCAL_IP": "127.0.0.1",
        }
        command = [sys.executable, "-m", "tests.cluster.app", str(folder), json.dumps(flags)]
        with (folder / "app.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        return cls(folder, process)

    def finished(self) -> Path:
        """Waits until it has ended well; returns its folder."""
        code = self.process.wait(TIMEOUT_S)
        assert code == 0, (self.folder / "app.log").read_text()[-4000:]
        return self.folder

    def end(self) -> None:
        """Leaves nothing of it behind, however it went."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
