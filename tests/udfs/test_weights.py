"""Weights from a hub: fetched once, whole, at the pinned revision, or refused with what to do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.engine import EngineSettings, HubWeights
from conf.errors import EngineError
from tests.hub_server import Hub, checkpoint, running
from udfs.engine.launch import connect
from udfs.engine.slot import Slot
from udfs.weights import LOCK, RECORD, is_copied, problems

REPO = "Qwen/Some-Model"
REVISION, OTHER = "a" * 40, "b" * 40
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
MEBI = 1 << 20
NOBODY = "http://127.0.0.1:9"

# A process of its own, as an executor is; the hub's library keeps its address for the life of a process.
PROGRAM = """
import logging, sys
from pathlib import Path
from conf.engine import HubWeights
from conf.errors import WeightsError
from udfs.weights import ensure_weights
logging.basicConfig(level=logging.INFO)
try:
    ensure_weights(Path(sys.argv[1]), HubWeights(repo_id=sys.argv[2], revision=sys.argv[3]))
except WeightsError as error:
    sys.exit(f"REFUSED {error}")
assert "torch" not in sys.modules
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub(files={REPO: {REVISION: checkpoint(3 * MEBI, 24 * MEBI)}})) as hub:
        yield hub


def start(path: Path, url: str, revision: str = REVISION, **more: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(path.parent / "home"), **more}
    command = [sys.executable, "-c", PROGRAM, str(path), REPO, revision]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def fetch(path: Path, url: str, revision: str = REVISION, **more: str) -> str:
    """What the process says when it refuses; nothing when it does not."""
    said = start(path, url, revision, **more).communicate(timeout=120)[1]
    return said.partition("REFUSED ")[2].strip()


def held(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def weights_of(hub: Hub, revision: str = REVISION) -> dict[str, bytes]:
    return {name: data for name, data in hub.files[REPO][revision].items() if name != "README.md"}


def test_two_processes_at_once_fetch_each_file_once_and_a_third_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / REPO
    both = [start(path, hub.url) for _ in range(2)]
    assert [process.communicate(timeout=120)[1].count("REFUSED") for process in both] == [0, 0]
    assert [process.returncode for process in both] == [0, 0]
    assert hub.fetched() == sorted(weights_of(hub))
    assert {name: data for name, data in held(path).items() if name not in (RECORD, LOCK)} == weights_of(hub)
    assert problems(path) == []
    assert not is_copied(path)
    listings = hub.listings
    assert fetch(path, hub.url) == ""
    assert (hub.listings, hub.fetched()) == (listings, sorted(weights_of(hub)))


def test_without_a_network_complete_files_serve_and_missing_ones_say_what_to_do(
    hub: Hub, tmp_path: Path
) -> None:
    path = tmp_path / REPO
    assert fetch(path, hub.url) == ""
    assert fetch(path, NOBODY) == ""
    (path / FIRST).unlink()
    for refusal in (fetch(path, NOBODY), fetch(path, hub.url, HF_HUB_OFFLINE="1")):
        assert f"the weights of {REPO} (revision {REVISION}) are not complete in {path}" in refusal
        assert "HF_ENDPOINT" in refusal
        assert "copy the repository's files to" in refusal
        assert len(refusal.splitlines()) == 1
    # Back in reach of the hub, only what is missing is fetched.
    hub.asked.clear()
    assert fetch(path, hub.url) == ""
    assert hub.fetched() == [FIRST]


def test_a_download_that_is_cut_in_the_middle_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.cuts[SECOND] = 15 * MEBI
    assert fetch(tmp_path / REPO, hub.url) == ""
    ranges = [first for name, first in hub.asked if name == SECOND]
    assert ranges[0] == 0
    assert len(ranges) == 2
    assert ranges[1] > 0
    assert held(tmp_path / REPO)[SECOND] == hub.files[REPO][REVISION][SECOND]


def test_after_a_kill_the_files_that_had_arrived_are_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / REPO
    hub.stalls[SECOND] = 15 * MEBI
    process = start(path, hub.url)
    assert hub.stalled.wait(60)
    # Small files may arrive after large ones: several are fetched at once.
    arriving = (FIRST, "config.json", "model.safetensors.index.json")
    while not all((path / name).is_file() for name in arriving):
        assert process.poll() is None
    process.kill()
    process.communicate()
    # What is half there is nobody's copy, and no engine may load it.
    assert not is_copied(path)
    assert problems(path) == [f"{SECOND} is missing"]
    hub.stalls.clear()
    hub.asked.clear()
    assert fetch(path, hub.url) == ""
    assert SECOND in hub.fetched()
    assert FIRST not in hub.fetched()
    assert problems(path) == []


def test_a_file_that_was_cut_on_disk_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / REPO
    assert fetch(path, hub.url) == ""
    (path / SECOND).write_bytes((path / SECOND).read_bytes()[:MEBI])
    hub.asked.clear()
    assert fetch(path, hub.url) == ""
    assert hub.fetched() == [SECOND]
    assert problems(path) == []


def test_a_repository_that_lacks_a_shard_of_its_index_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files[REPO][REVISION][SECOND]
    assert f"{SECOND} is missing" in fetch(tmp_path / REPO, hub.url)
    assert f"{SECOND} is missing" in fetch(tmp_path / REPO, hub.url)


def test_another_revision_replaces_the_earlier_one_and_an_unknown_one_is_refused(
    hub: Hub, tmp_path: Path
) -> None:
    path = tmp_path / REPO
    assert fetch(path, hub.url) == ""
    assert f"no revision {OTHER} of {REPO}" in fetch(path, hub.url, OTHER)
    assert fetch(path, hub.url) == "", "a refused revision spoils nothing"
    # Other shards under other names, and a file that stays the same.
    hub.files[REPO][OTHER] = checkpoint(MEBI, fill=7)
    hub.asked.clear()
    assert fetch(path, hub.url, OTHER) == ""
    assert {name: data for name, data in held(path).items() if name not in (RECORD, LOCK)} == weights_of(
        hub, OTHER
    )
    assert "config.json" not in hub.fetched()


def test_a_repository_that_the_hub_does_not_have_is_named(tmp_path: Path) -> None:
    with running(Hub()) as hub:
        assert f"the hub has no {REPO}" in fetch(tmp_path / REPO, hub.url)


def test_copied_weights_are_left_alone_and_say_what_is_cut_off(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / REPO
    path.mkdir(parents=True)
    for name, data in weights_of(hub).items():
        (path / name).write_bytes(data)
    assert is_copied(path)
    assert problems(path) == []
    assert "put the same copy on the driver" in fetch(path, hub.url)
    (path / FIRST).write_bytes(weights_of(hub)[FIRST][:-5])
    (path / SECOND).unlink()
    full = len(weights_of(hub)[FIRST])
    assert problems(path) == [f"{FIRST} has {full - 5} of {full} bytes", f"{SECOND} is missing"]
    (path / "model.safetensors.index.json").unlink()
    assert "index" in problems(path)[0]
    assert hub.listings == 0


def test_an_engine_whose_weights_cannot_be_had_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    weights = HubWeights(repo_id=REPO, revision=REVISION)
    settings = EngineSettings(model_path=str(tmp_path / REPO), kind="text", weights=weights)
    with pytest.raises(EngineError, match="HF_ENDPOINT"):
        connect(Slot.of_process(), settings)
