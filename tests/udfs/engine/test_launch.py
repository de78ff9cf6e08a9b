"""An engine that inherits a Python worker's cage runs on one core, or out of address space."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conf.engine import EngineSettings
from udfs.engine.launch import host_environment, import_path
from udfs.engine.runtime import Place
from udfs.engine.slot import Slot
from udfs.engine.vllm_compat import Device, limit_threads


def test_the_host_leaves_the_environment_of_a_spark_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OMP_NUM_THREADS",
        "PYTHONHASHSEED",
        "SPARK_HOME",
        "PYSPARK_PYTHON",
        "HF_TOKEN",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/lib")
    slot = Slot.of_process()
    environment = host_environment(slot, Place.of(slot, "k"), "/opt/engine/bin/python")
    assert not {"OMP_NUM_THREADS", "SPARK_HOME", "PYSPARK_PYTHON", "HF_TOKEN", "PYTHONHASHSEED"} & set(
        environment
    )
    assert environment["LD_LIBRARY_PATH"] == "/lib"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert (Path(environment["PYTHONPATH"]) / "udfs" / "engine" / "host.py").exists()


def test_the_host_finds_packages_where_its_client_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/shipped/packages:/shipped/more")
    shipped = import_path(sys.executable).split(":")
    assert shipped[1:] == ["/shipped/packages", "/shipped/more"]
    assert (Path(shipped[0]) / "udfs" / "engine" / "host.py").exists()
    assert import_path("/opt/engine/bin/python") == shipped[0]


PROGRAM = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
from conf.engine import EngineSettings
from udfs.engine.client import EngineClient
from udfs.engine.requests import TextRequest
from udfs.engine.slot import Slot
with EngineClient(EngineSettings(model_path="/nowhere", kind="text"), Slot.of_process()) as client:
    print(repr(client.submit(TextRequest("t", "x")).exception()))
"""


def test_a_limited_address_space_is_refused_with_advice() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert "EngineError" in done.stdout
    assert "spark.executor.pyspark.memory" in done.stdout


def test_clients_that_differ_only_in_rendering_share_an_engine(tmp_path: Path) -> None:
    one = EngineSettings(model_path="m", kind="caption")
    other = EngineSettings(
        model_path=str(Path("m").resolve()), kind="caption", render={"record_dir": str(tmp_path)}
    )
    assert one.key == other.key
    assert one.key != EngineSettings(model_path="m", kind="caption", dtype="float32").key


def test_a_missing_interpreter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from conf.errors import EngineError
    from udfs.engine.launch import connect

    settings = EngineSettings(model_path="/nowhere", kind="text", python="/no/such/python")
    with pytest.raises(EngineError, match="/no/such/python"):
        connect(Slot.of_process(), settings)


@pytest.mark.parametrize(("device", "threads"), [(Device("card", (9, 0)), "1"), (Device("cpu", None), "4")])
def test_the_engine_of_a_card_has_one_thread_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, device: Device, threads: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    limit_threads(device)
    assert os.environ["OMP_NUM_THREADS"] == threads
