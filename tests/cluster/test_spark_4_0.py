"""Everything but the models on Spark 4.0; captions there: `tests/pipeline/test_again.py`, in a killed job."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from demo.make_clips import write_scene
from jobs.session import DELTA_PACKAGES
from tests import spark_4_0
from tests.checkout import ROOT

ROWS = """
SELECT window_status, window_attempt, num_frames, preview_status, preview_num_frames
FROM window_captions ORDER BY num_frames
"""
WEBPS = """
WITH wanted AS (
  SELECT clip_id, collect_list(struct(window_id, start_frame, end_frame, window_error)) AS wanted_windows
  FROM window_captions WHERE window_status = 'success' GROUP BY clip_id
)
SELECT answer.preview_status, length(answer.webp) = answer.num_bytes AS is_whole
FROM (
  SELECT explode(preview_webp(clip_id, clip_bytes, clip_uri, wanted_windows)) AS answer
  FROM clips JOIN wanted USING (clip_id)
)
"""

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Smoke:
    """What the commands printed, and the lake and the files that they left."""

    folder: Path
    versions: dict[str, str]
    printed: list[str]

    def rows(self, table: str) -> list[dict[str, Any]]:
        return DeltaTable(str(self.folder / "lake" / table)).to_pyarrow_table().to_pylist()


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    folder = tmp_path_factory.mktemp("spark40")
    (folder / "clips").mkdir()
    for seed in range(2):
        path = folder / "clips" / f"scene_{seed}.mp4"
        write_scene(path, seed=seed, frame_rate=30, seconds=1.5 + seed, size=(160, 120))
    (folder / "clips" / "text.mp4").write_text("not a video")
    lake = ["--output-path", str(folder / "lake")]
    run = ["run", *lake, "--input-path", str(folder / "clips"), "--generate-previews"]
    run += ["--keep-window-mp4", "--preview-num-cpus-per-worker", "1"]
    run += ["--master", "local[2]", "--spark-property", "spark.ui.enabled=false"]
    commands = [
        run,
        run,
        ["retry", *lake, "--where", "window_status = 'error'"],
        ["sql", *lake, "--format", "json", ROWS],
        ["sql", *lake, "--format", "json", WEBPS],
        ["export", *lake, "--export-path", str(folder / "files"), "--export-clips"],
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.commands", str(folder / "out.json"), json.dumps(commands)],
        cwd=ROOT,
        env=spark_4_0.environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    out = json.loads((folder / "out.json").read_text())
    assert [result["code"] for result in out["results"]] == [0] * len(commands), done.stderr[-4000:]
    return Smoke(folder, out["versions"], [result["printed"] for result in out["results"]])


def test_it_is_spark_4_0_with_the_delta_that_goes_with_it(smoke: Smoke) -> None:
    assert smoke.versions["pyspark"] == smoke.versions["spark"]
    assert smoke.versions["spark"].startswith("4.0.")
    assert smoke.versions["delta"] == DELTA_PACKAGES["4.0"]


def test_every_clip_has_its_window_and_every_window_its_preview(smoke: Smoke) -> None:
    assert len(smoke.rows("clips")) == 3
    statuses = sorted((row["window_status"], row["attempt"]) for row in smoke.rows("windows"))
    assert statuses == [("error", 1), ("error", 2), ("success", 1), ("success", 1)]
    rows = smoke.rows("previews")
    assert sorted(row["preview_status"] for row in rows) == ["skipped", "skipped", "success", "success"]
    previews = [row for row in rows if row["preview_status"] == "success"]
    assert len({row["window_id"] for row in previews}) == 2
    mp4s = {row["window_index"]: row["media_status"] for row in smoke.rows("window_media")}
    assert sorted(mp4s.items(), key=str) == [(0, "success"), (None, "skipped")]
    assert all(row["webp"][:4] == b"RIFF" and row["webp"][8:12] == b"WEBP" for row in previews)


def test_a_second_run_does_nothing_and_retry_tries_the_error_again(smoke: Smoke) -> None:
    first, second, retried, *_ = smoke.printed
    assert "previews" in first
    assert "previews" not in second
    assert "windows" not in second
    assert "error" in retried
    assert [row["run_status"] for row in smoke.rows("runs")] == ["success"] * 3


def test_sql_and_export_show_what_is_there(smoke: Smoke) -> None:
    shown = [json.loads(line) for line in smoke.printed[3].splitlines()]
    assert [(row["num_frames"], row["preview_status"]) for row in shown] == [
        (None, "skipped"),
        (45, "success"),
        (75, "success"),
    ]
    assert shown[0]["window_attempt"] == 2
    made = [json.loads(line) for line in smoke.printed[4].splitlines()]
    assert made == [{"preview_status": "success", "is_whole": True}] * 2
    files = smoke.folder / "files"
    assert {path.name for path in files.glob("previews/*/*.webp")} == {"0_44.webp", "0_74.webp"}
    assert len(list(files.glob("clips/*.mp4"))) == 3
    assert len(list(files.glob("metas/v0/*.json"))) == 3
