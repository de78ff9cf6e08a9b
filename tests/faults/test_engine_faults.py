"""What dies, comes back; what must not survive, does not. Each test loads engines of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.engine import EngineSettings
from tests.engine_fixtures import DemoModels, vision_settings
from tests.udfs.engine.requests_maker import caption_request
from udfs.engine.client import EngineClient
from udfs.engine.requests import Generation, TextRequest
from udfs.engine.runtime import group_members, kill_group, read_holder
from udfs.engine.slot import Slot

pytestmark = pytest.mark.faults
TIMEOUT_S = 300
LONG = Generation(temperature=0.0, max_output_tokens=400)


@pytest.fixture
def owner() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that stands for an executor."""
    process = subprocess.Popen(["sleep", "3600"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def client(random_models: DemoModels, owner: "subprocess.Popen[bytes]") -> Iterator[EngineClient]:
    """A client of a loaded engine of its own."""
    with EngineClient(vision_settings(random_models), Slot.of_process(owner.pid)) as made:
        made.wait_ready(TIMEOUT_S)
        yield made


def engine_processes(host: int, name: str) -> list[int]:
    """Processes of the host's group whose title contains `name`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == host and name in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
            except (ProcessLookupError, FileNotFoundError):
                continue
    return found


def group_is_gone(host: int) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        shown = subprocess.run(["ps", "-o", "stat=", "-g", str(host)], capture_output=True, text=True).stdout
        if not [line for line in shown.split() if not line.startswith("Z")]:
            return True
        time.sleep(0.1)
    return False


def wait_until_running(client: EngineClient, number: int) -> dict[str, Any]:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        status = client.status()
        if status["state"] == "ready" and status["running"] >= number:
            return status
        time.sleep(0.02)
    raise AssertionError("nothing runs")


def wait_until_loading(client: EngineClient) -> None:
    deadline = time.monotonic() + 30
    while client.status()["state"] != "loading" and time.monotonic() < deadline:
        time.sleep(0.02)


def test_requests_in_flight_survive_the_death_of_the_engine(client: EngineClient) -> None:
    quiet = [
        client.submit(caption_request(f"w{k}", k, generation=LONG), 8).result(TIMEOUT_S).text
        for k in range(8)
    ]
    worked_s = client.status()["busy_s"]
    futures = [client.submit(caption_request(f"w{k}", k, generation=LONG), 8) for k in range(8)]
    host = wait_until_running(client, 8)["pid"]
    os.kill(engine_processes(host, "EngineCore")[0], signal.SIGKILL)
    replies = [future.result(TIMEOUT_S) for future in futures]
    assert [reply.error for reply in replies] == [None] * 8
    assert [reply.text for reply in replies] == quiet
    assert client.status()["loads"] == 2
    assert client.status()["busy_s"] > worked_s > 0


def test_a_request_that_kills_the_engine_twice_is_given_up_alone(client: EngineClient) -> None:
    futures = [client.submit(caption_request(f"w{k}", k, generation=LONG), 4) for k in range(4)]
    host = wait_until_running(client, 4)["pid"]
    os.kill(engine_processes(host, "EngineCore")[0], signal.SIGKILL)
    wait_until_loading(client)
    assert wait_until_running(client, 1)["running"] == 1
    os.kill(engine_processes(host, "EngineCore")[0], signal.SIGKILL)
    errors = [future.result(TIMEOUT_S).error for future in futures]
    assert sum(error is not None for error in errors) == 1
    assert "died twice" in next(error for error in errors if error is not None)
    assert client.status()["loads"] == 3


def test_requests_survive_the_death_of_the_host_and_nothing_of_it_is_left(client: EngineClient) -> None:
    futures = [client.submit(caption_request(f"w{k}", k, generation=LONG), 8) for k in range(8)]
    host = wait_until_running(client, 8)["pid"]
    os.kill(host, signal.SIGKILL)
    assert [future.result(TIMEOUT_S).error for future in futures] == [None] * 8
    assert client.status()["pid"] != host
    assert group_is_gone(host)


def test_nothing_outlives_a_killed_host_even_when_nobody_comes_after_it(
    client: EngineClient,
) -> None:
    host = client.status()["pid"]
    client.close()
    os.kill(host, signal.SIGKILL)
    assert group_is_gone(host)


def test_nothing_outlives_the_executor(client: EngineClient, owner: "subprocess.Popen[bytes]") -> None:
    host = client.status()["pid"]
    client.close()
    owner.kill()
    owner.wait()
    assert group_is_gone(host)
    assert not list(Path("/dev/shm").glob("psm_*"))


def test_an_engine_that_hangs_is_killed_and_its_requests_answered(
    random_models: DemoModels, owner: "subprocess.Popen[bytes]"
) -> None:
    settings = vision_settings(random_models).model_copy(update={"hang_timeout_s": 5.0})
    with EngineClient(settings, Slot.of_process(owner.pid)) as client:
        client.wait_ready(TIMEOUT_S)
        futures = [client.submit(caption_request(f"w{k}", k, generation=LONG), 4) for k in range(4)]
        host = wait_until_running(client, 4)["pid"]
        for pid in engine_processes(host, "EngineCore") + engine_processes(host, "Worker"):
            os.kill(pid, signal.SIGSTOP)
        assert [future.result(TIMEOUT_S).error for future in futures] == [None] * 4
        assert client.status()["loads"] == 2


def test_settings_that_cannot_work_are_told_to_every_client(
    owner: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    settings = EngineSettings(model_path=str(tmp_path), kind="text", dtype="float32")
    slot = Slot.of_process(owner.pid)
    with EngineClient(settings, slot) as one, EngineClient(settings, slot) as other:
        futures = [client.submit(TextRequest("t", "hello")) for client in (one, other)]
        errors = [str(future.exception(TIMEOUT_S)) for future in futures]
    for error in errors:
        assert "did not start" in error
        assert "log" in error


def test_a_gpu_holds_one_engine_and_gives_it_to_others_in_turn(
    random_models: DemoModels, owner: "subprocess.Popen[bytes]", engine_runtime: Path
) -> None:
    slot = Slot.of_process(owner.pid, gpu="0")
    text_settings = EngineSettings(
        model_path=str(random_models.text), kind="text", dtype="float32", tenure_s=5
    )
    vision = vision_settings(random_models).model_copy(update={"tenure_s": 5})
    with EngineClient(vision, slot) as seeing, EngineClient(text_settings, slot) as reading:
        seeing.wait_ready(TIMEOUT_S)
        host = seeing.status()["pid"]
        stop = threading.Event()
        seen: list[str | None] = []

        def keep_busy() -> None:
            while not stop.is_set():
                seen.append(seeing.submit(caption_request("w", len(seen)), 2).result(TIMEOUT_S).error)

        busy = threading.Thread(target=keep_busy)
        busy.start()
        reply = reading.submit(TextRequest("t", "hello", None, Generation(0.0, 1.0, 1.0, 8))).result(
            TIMEOUT_S
        )
        assert reply.error is None
        assert group_is_gone(host)
        count = len(seen)
        stop.set()
        busy.join(TIMEOUT_S)
        assert not busy.is_alive()
        assert set(seen) == {None}
        assert len(seen) >= count
    holder = read_holder(next(engine_runtime.glob(f"{slot.name}.lock")))
    assert holder is not None
    kill_group(holder)
    assert group_members(holder) == []


def test_a_second_executor_is_refused_a_card_that_has_an_owner(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from udfs.engine.runtime import Holder, HostLock;"
        "from udfs.engine.slot import Slot;"
        "print(HostLock(Path(sys.argv[1])).acquire(Holder.myself(Slot.of_process(), 'k'))); time.sleep(0)"
    )
    from udfs.engine.runtime import Holder, HostLock

    assert HostLock(tmp_path / "card.lock").acquire(Holder.myself(Slot.of_process(), "k")) is None
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "card.lock")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"pid={os.getpid()}" in done.stdout
