"""On two executors: one model each for life, no caption on another window, nothing left behind."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable

from tests.cluster.background import NUM_CLIPS, ClusterApp
from tests.udfs.media import plain_decode
from udfs.engine.runtime import group_members, read_holder

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class ClusterRun:
    """What the application left: its folder, its own account, and the rows of its tables."""

    folder: Path
    seen: dict[str, Any]
    captions: list[dict[str, Any]]
    windows: dict[str, dict[str, Any]]
    sources: dict[str, Path]


@pytest.fixture(scope="module")
def cluster_run(cluster_app: ClusterApp) -> ClusterRun:
    folder = cluster_app.finished()
    lake = folder / "lake"
    captions = DeltaTable(str(lake / "captions")).to_pyarrow_table().to_pylist()
    windows = DeltaTable(str(lake / "windows")).to_pyarrow_table().to_pylist()
    rows = DeltaTable(str(lake / "clips")).to_pyarrow_table().to_pylist()
    return ClusterRun(
        folder,
        json.loads((folder / "seen.json").read_text()),
        captions,
        {row["window_id"]: row for row in windows},
        {row["clip_id"]: Path(row["clip_uri"].removeprefix("file://")) for row in rows},
    )


def loads(run: ClusterRun) -> list[list[str]]:
    """Hosts that have loaded a model, after each of the three jobs; only this application's executors."""
    mine = {str(executor) for executor in run.seen["executors"]}
    return [
        sorted(one["host"] for one in after if one["host"].split("-")[0] in mine)
        for after in run.seen["loads"]
    ]


def records(run: ClusterRun, prompt: str) -> dict[str, tuple[dict[str, Any], Path]]:
    """The last record of each window under a prompt; a killed worker's window was asked for twice."""
    found = {}
    paths = (run.folder / "records" / prompt / "captions").glob("*/stage1.json")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
        found[path.parent.name.split("#")[0]] = (json.loads(path.read_text()), path.with_suffix(".npz"))
    return found


def test_each_executor_loads_its_model_once_whatever_becomes_of_its_python_workers(
    cluster_run: ClusterRun,
) -> None:
    seen = cluster_run.seen
    assert len(seen["executors"]) == 2
    first, second, third = loads(cluster_run)
    assert len(first) == len(set(first)) == 2
    assert seen["killed"], "no worker was killed, so nothing was tested"
    assert second == first
    assert set(seen["workers_after_idling"]).isdisjoint(seen["workers"][1]), (
        "the workers did not die of idleness"
    )
    assert third == first


def test_every_caption_is_on_its_own_window(cluster_run: ClusterRun) -> None:
    assert len(cluster_run.windows) == NUM_CLIPS
    for prompt in ("First prompt?", "Second prompt?", "Third prompt?"):
        rows = [row for row in cluster_run.captions if row["prompt_text"] == prompt]
        assert len(rows) == len({row["window_id"] for row in rows}) == NUM_CLIPS
        recorded = records(cluster_run, prompt.split()[0].lower())
        for row in rows:
            record, _ = recorded[row["window_id"]]
            assert prompt in record["prompt_text"]
            assert row["caption"] == record["answer"]["text"]
            assert row["prompt_tokens"] == len(record["token_ids"])


def test_answers_came_out_of_order(cluster_run: ClusterRun) -> None:
    paths = list((cluster_run.folder / "records" / "first").glob("captions/*/stage1.json"))
    by_answer = sorted(paths, key=lambda path: path.stat().st_mtime_ns)
    numbers = [int(path.parent.name.split("#")[1]) for path in by_answer]
    assert numbers != sorted(numbers), "every answer came in the order of asking, so nothing was tested"


def test_captions_differ_where_clips_do(cluster_run: ClusterRun) -> None:
    assert len({row["caption"] for row in cluster_run.captions}) > NUM_CLIPS // 4


def test_frames_and_real_times_reach_the_engine(cluster_run: ClusterRun) -> None:
    recorded = records(cluster_run, "first")
    for window_id, (_, tensors) in list(recorded.items())[::8]:
        window = cluster_run.windows[window_id]
        decoded = list(plain_decode(cluster_run.sources[window["clip_id"]]))
        times = [decoded[index][0] for index in window["frame_indices"]]
        with np.load(tensors) as arrays:
            np.testing.assert_allclose(arrays["times_s"], times, atol=1e-6)
            spacing = (times[-1] - times[0]) / (len(times) - 1)
            np.testing.assert_allclose(arrays["second_per_grid_ts"].ravel()[0], 2 * spacing, atol=2e-3)
            assert len(arrays["frames"]) == len(times)


def test_no_process_is_left_when_the_executors_are_gone(cluster_run: ClusterRun) -> None:
    runtime = Path(cluster_run.seen["runtime_dir"])
    mine = tuple(f"{executor}-" for executor in cluster_run.seen["executors"])
    deadline = time.monotonic() + 30
    left = [1]
    while left and time.monotonic() < deadline:
        holders = [read_holder(lock) for lock in runtime.glob("*.lock") if lock.name.startswith(mine)]
        left = [pid for holder in holders if holder for pid in group_members(holder)]
        time.sleep(0.2)
    assert left == []
