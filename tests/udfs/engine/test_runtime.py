"""An engine that outlives its executor keeps the GPU's memory from everybody else."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from conf.errors import EngineError
from udfs.engine.runtime import (
    RUNTIME_DIR_VARIABLE,
    TRACKER_GRACE_S,
    Holder,
    HostLock,
    Place,
    boot_id,
    group_members,
    kill_group,
    runtime_dir,
    sweep,
)
from udfs.engine.slot import Slot, current_slot, process_start

LEADER = (
    "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
)


def start_group() -> tuple["subprocess.Popen[str]", Holder]:
    """A process that leads a session, with a child."""
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    leader.stdout.readline()
    return leader, Holder(leader.pid, process_start(leader.pid) or 0, boot_id(), os.getpid(), "k")


def kill_leader(leader: "subprocess.Popen[str]") -> None:
    os.kill(leader.pid, signal.SIGKILL)
    leader.wait()


def test_whoever_takes_the_lock_next_kills_what_a_dead_host_left(tmp_path: Path) -> None:
    leader, holder = start_group()
    (tmp_path / "x.lock").write_text(json.dumps(asdict(holder)))
    kill_leader(leader)
    assert len(group_members(holder)) == 1
    assert HostLock(tmp_path / "x.lock").acquire(Holder.myself(Slot.of_process(), "k")) is None
    assert group_members(holder) == []


def test_a_living_host_keeps_its_lock_and_is_named(tmp_path: Path) -> None:
    mine = Holder.myself(Slot.of_process(), "k")
    assert HostLock(tmp_path / "x.lock").acquire(mine) is None
    assert HostLock(tmp_path / "x.lock").acquire(replace(mine, pid=1)) == mine


def test_a_later_process_group_of_the_same_number_is_left_alone() -> None:
    leader, holder = start_group()
    kill_group(replace(holder, start=holder.start - 1))
    kill_group(replace(holder, boot="another boot"))
    assert leader.poll() is None
    assert len(group_members(holder)) == 2
    kill_group(holder)
    assert leader.wait() == -signal.SIGKILL


def test_a_sweep_ends_engines_of_executors_that_are_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    leader, holder = start_group()
    (tmp_path / "x.lock").write_text(json.dumps(asdict(replace(holder, owner_pid=gone.pid))))
    kill_leader(leader)
    sweep(tmp_path)
    assert group_members(holder) == []
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_folder_that_others_can_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(f"/tmp/cl-open-{os.getpid()}")
    monkeypatch.setenv(RUNTIME_DIR_VARIABLE, str(folder))
    assert runtime_dir().stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(EngineError, match="0700"):
        runtime_dir()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(EngineError, match="0700"):
        runtime_dir()
    folder.unlink()
    monkeypatch.setenv(RUNTIME_DIR_VARIABLE, "/tmp/" + "x" * 90)
    with pytest.raises(EngineError, match="too long"):
        runtime_dir()


def test_socket_names_stay_short() -> None:
    slot = Slot(4_194_304, 99_999_999_999, gpu="GPU-8a56f4bc-0000-1111-2222-333344445555")
    longest = Place(Path("/tmp/" + "x" * 45), Place.of(slot, "k" * 16).name)
    assert len(str(longest.socket)) < 107
    assert len(str(longest.rpc / "12345678-1234-1234-1234-123456789012")) < 107


def test_a_gpu_has_one_place_and_a_cpu_one_for_each_engine() -> None:
    cpu, gpu = Slot.of_process(), Slot.of_process(gpu="0")
    assert Place.of(gpu, "a") == Place.of(gpu, "b")
    assert Place.of(cpu, "a") != Place.of(cpu, "b")


def test_without_spark_the_engine_belongs_to_this_process() -> None:
    assert current_slot().owner_pid == os.getpid()
    assert current_slot().owner_start == process_start(os.getpid())


def test_a_worker_finds_the_java_process_that_it_descends_from(tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.symlink_to("/bin/bash")
    program = "from udfs.engine.slot import current_slot; print(current_slot().owner_pid)"
    # Two processes deep, as Spark's daemon and worker are; the echoes keep the shells from exec.
    script = f'echo $$; bash -c \'"{sys.executable}" -c "{program}"; echo\'; echo'
    shown = subprocess.run(
        [str(java), "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert shown[1] == shown[0]


def test_processes_of_a_killed_group_are_gone_without_waiting_for_trackers() -> None:
    leader, holder = start_group()
    started = time.monotonic()
    kill_group(holder)
    assert time.monotonic() - started < TRACKER_GRACE_S
    leader.wait()
