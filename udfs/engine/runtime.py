"""Where engines meet: a private folder of short socket names, locks, logs, and who is whose group."""

import fcntl
import hashlib
import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conf.errors import EngineError
from udfs.engine.slot import PROC, Slot, is_zombie, process_group_and_session, process_start

RUNTIME_DIR_VARIABLE = "CAPTIONLAKE_RUNTIME_DIR"
# A socket's path may have 107 characters, and the names below and vLLM's take up to 56.
MAX_FOLDER_CHARS = 50
KEEP_LOGS_S = 7 * 86_400.0
TRACKER_GRACE_S = 3.0


def runtime_dir() -> Path:
    """Returns this user's folder for sockets, locks and logs, made with mode 0700 when missing.

    Raises:
        EngineError: when it belongs to somebody else, is open to others, or its path is too long.
    """
    path = Path(os.environ.get(RUNTIME_DIR_VARIABLE) or f"/tmp/captionlake-{os.getuid()}")  # noqa: S108
    if len(str(path)) > MAX_FOLDER_CHARS:
        raise EngineError(
            f"{RUNTIME_DIR_VARIABLE}={path} is too long for sockets; at most {MAX_FOLDER_CHARS} characters"
        )
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise EngineError(
            f"{path} must be a folder of user {os.getuid()} that nobody else can enter (mode 0700); "
            f"remove it or name another one in {RUNTIME_DIR_VARIABLE}"
        )
    return path


@dataclass(frozen=True)
class Place:
    """The files of one host."""

    folder: Path
    name: str

    @classmethod
    def of(cls, slot: Slot, key: str) -> "Place":
        """Returns the place of the host with settings `key` on `slot`: one per slot where a GPU is shared."""
        return cls(runtime_dir(), slot.name if slot.gpu is not None else f"{slot.name}-{key[:8]}")

    @property
    def socket(self) -> Path:
        """The socket that clients connect to."""
        return self.folder / f"{self.name}.sock"

    @property
    def lock(self) -> Path:
        """The file that a host locks for its life."""
        return self.folder / f"{self.name}.lock"

    @property
    def launch(self) -> Path:
        """The file that a client locks while it starts a host."""
        return self.folder / f"{self.name}.launch"

    @property
    def rpc(self) -> Path:
        """The folder of the sockets between host and engine."""
        return self.folder / f"r{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"

    @property
    def log(self) -> Path:
        """What host and engine have to say."""
        return self.folder / f"{self.name}.log"

    @property
    def loads(self) -> Path:
        """One JSON line per model load, of all hosts in the folder."""
        return self.folder / "loads.log"


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: a host, and with it its whole process group."""

    pid: int
    start: int
    boot: str
    owner_pid: int
    key: str

    @classmethod
    def myself(cls, slot: Slot, key: str) -> "Holder":
        """Returns the calling process, which must lead its process group."""
        return cls(os.getpid(), process_start(os.getpid()) or 0, boot_id(), slot.owner_pid, key)


class HostLock:
    """A lock that is held for the life of a process, and names its holder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, holder: Holder) -> Holder | None:
        """Takes the lock, and kills what a dead holder's group has left behind.

        Returns:
            None when the lock is ours now, else who has it.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return read_holder(self.path) or holder
        self._fd = fd
        previous = read_holder(self.path)
        if previous is not None:
            kill_group(previous)
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(asdict(holder)).encode(), 0)
        return None

    def release(self) -> None:
        """Gives the lock up."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def sweep(folder: Path) -> None:
    """Removes what hosts of executors that are gone have left in `folder`, living processes included."""
    for path in folder.glob("*.lock"):
        holder = read_holder(path)
        if holder is None or (holder.boot == boot_id() and process_start(holder.owner_pid) is not None):
            continue
        lock = HostLock(path)
        if lock.acquire(holder) is None:
            for suffix in ("lock", "launch", "sock"):
                path.with_suffix(f".{suffix}").unlink(missing_ok=True)
            lock.release()
    for path in folder.glob("*.log"):
        if path.stem != "loads" and time.time() - path.stat().st_mtime > KEEP_LOGS_S:
            path.unlink(missing_ok=True)


def read_holder(path: Path) -> Holder | None:
    """Returns who wrote the lock file at `path`; None when nobody did or the entry is unreadable."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def boot_id() -> str:
    """Returns what tells this boot of the machine from others."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def group_members(holder: Holder) -> list[int]:
    """Returns the living processes of `holder`'s group, the holder included.

    A group outlives its leader, and its number is free again when its last member is gone. So members
    must also be of the holder's session and no older than it, and a leader must be the holder itself.
    """
    if holder.boot != boot_id():
        return []
    leader_start = process_start(holder.pid)
    if leader_start is not None and leader_start != holder.start:
        return []
    return [pid for pid in _all_pids() if _is_member(pid, holder) and not is_zombie(pid)]


def kill_group(holder: Holder, *, spare: int | None = None) -> None:
    """Kills `holder`'s group, except process `spare`, and returns when it is gone.

    Python's resource trackers are killed last: left alone, they end by themselves once the others
    have, and remove the shared memory that those left behind.
    """
    deadline = time.monotonic() + TRACKER_GRACE_S
    while True:
        members = [pid for pid in group_members(holder) if pid != spare]
        patient = time.monotonic() < deadline
        victims = [pid for pid in members if not (patient and _is_tracker(pid))]
        if not victims and (not members or spare is not None):
            return
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def log_tail(path: Path, *, num_lines: int = 30) -> str:
    """Returns the last lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64_000))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(lines[-num_lines:])


def record_load(place: Place, entry: dict[str, Any]) -> None:
    """Appends one line to the list of loads."""
    line = json.dumps({"time": time.time(), "host": place.name, **entry}) + "\n"
    fd = os.open(place.loads, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def read_loads(folder: Path | None = None) -> list[dict[str, Any]]:
    """Returns every model load of this user on this machine: `time`, `host`, `key`, `pid`, `seconds`."""
    path = (runtime_dir() if folder is None else folder) / "loads.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _is_member(pid: int, holder: Holder) -> bool:
    start = process_start(pid)
    return (
        process_group_and_session(pid) == (holder.pid, holder.pid)
        and start is not None
        and start >= holder.start
    )


def _is_tracker(pid: int) -> bool:
    try:
        return b"resource_tracker" in (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False
