"""Where an engine belongs: the executor that owns it, and its GPU."""

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")
NVIDIA_DEVICE = Path("/dev/nvidiactl")


@dataclass(frozen=True)
class Slot:
    """The place of an engine.

    Attributes:
        owner_pid: process that the engine lives and dies with (the executor's JVM).
        owner_start: start of that process in clock ticks since boot, which tells it from a later
            process of the same id.
        gpu: address of the GPU that the owner was given; None on an executor without one. A slot
            with a GPU holds one engine at a time.
    """

    owner_pid: int
    owner_start: int
    gpu: str | None = None

    @classmethod
    def of_process(cls, pid: int | None = None, *, gpu: str | None = None) -> "Slot":
        """Returns the slot of process `pid`, by default of the calling one, for use without Spark."""
        owner = os.getpid() if pid is None else pid
        return cls(owner, process_start(owner) or 0, gpu)

    @property
    def name(self) -> str:
        """Short name of the slot, unique on this machine as long as it is up."""
        gpu = "" if self.gpu is None else f"-g{''.join(filter(str.isalnum, self.gpu))[:12]}"
        return f"{self.owner_pid}-{self.owner_start}{gpu}"


def current_slot() -> Slot:
    """Returns the slot of the running task.

    The owner is the executor's JVM: the nearest ancestor called java, or this process when there is
    none. The GPU is the one that Spark gave the task; on a machine with cards but without such a
    resource (local mode) it is the first visible one.
    """
    owner = _java_ancestor(os.getpid()) or os.getpid()
    return Slot.of_process(owner, gpu=_task_gpu() or _first_local_gpu())


def process_start(pid: int) -> int | None:
    """Returns when `pid` started, in clock ticks since boot; None when there is no such process."""
    stat = _stat_fields(pid)
    return None if stat is None else int(stat[19])


def process_group_and_session(pid: int) -> tuple[int, int] | None:
    """Returns the process group and session of `pid`; None when there is no such process."""
    stat = _stat_fields(pid)
    return None if stat is None else (int(stat[2]), int(stat[3]))


def is_zombie(pid: int) -> bool:
    """Returns whether `pid` has ended and only waits to be reaped."""
    stat = _stat_fields(pid)
    return stat is not None and stat[0] in ("Z", "X")


@cache
def card_id(gpu: str) -> str | None:
    """Returns the machine-wide id of the card behind address `gpu`; None when there is no real card."""
    if not NVIDIA_DEVICE.exists():
        return None
    command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return gpu
    return shown.splitlines()[0] if shown else gpu


def _task_gpu() -> str | None:
    try:
        from pyspark import TaskContext
    except ImportError:
        return None
    context = TaskContext.get()
    addresses = context.resources().get("gpu") if context is not None else None
    return str(addresses.addresses[0]) if addresses is not None and addresses.addresses else None


def _first_local_gpu() -> str | None:
    if not NVIDIA_DEVICE.exists():
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "0" if visible is None else (visible.split(",")[0].strip() or None)


def _java_ancestor(pid: int) -> int | None:
    while pid > 1:
        stat = _stat_fields(pid)
        if stat is None:
            return None
        if _command(pid) == "java":
            return pid
        pid = int(stat[1])
    return None


def _command(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def _stat_fields(pid: int) -> list[str] | None:
    """Returns the fields of `/proc/PID/stat` behind the command: state, parent, group, session and so on."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()
