"""How a client finds the host of its slot, or starts it."""

import fcntl
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import udfs
from conf.engine import EngineSettings
from conf.errors import EngineError
from udfs.engine.runtime import Place, log_tail
from udfs.engine.slot import Slot, card_id
from udfs.weights import ensure_weights

logger = logging.getLogger(__name__)

PYTHON_VARIABLE = "CAPTIONLAKE_ENGINE_PYTHON"
BIND_TIMEOUT_S = 120.0
EXIT_TAKEN = 3

# What a host keeps of its client's environment. A Python worker of Spark has OMP_NUM_THREADS=1, its
# own import paths and its own sockets in there, and none of that is for the engine.
KEPT_VARIABLES = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "HF_HOME"}
    | {"LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"}
    | {"CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"}
)
KEPT_PREFIXES = ("LC_", "NVIDIA_", "NCCL_", "VLLM_", "TORCH", "TRITON_", "XDG_", "CAPTIONLAKE_")


def connect(slot: Slot, settings: EngineSettings) -> socket.socket:
    """Returns a connection to the host of `slot` and `settings`, which is started when there is none.

    The host listens before it loads the model, so this takes about a second, and as long as it takes to
    fetch weights that this machine lacks: the host itself never reaches for a network.

    Raises:
        EngineError: when no host can be started here, with the reason.
    """
    place = Place.of(slot, settings.key)
    if (sock := try_connect(place)) is not None:
        return sock
    check_memory_limit()
    if settings.weights is not None:
        ensure_weights(Path(settings.model_path), settings.weights)
    with _locked(place.launch):
        if (sock := try_connect(place)) is not None:
            return sock
        host = _spawn(slot, settings, place)
        return _wait_for_socket(host, place)


def try_connect(place: Place) -> socket.socket | None:
    """Returns a connection to the host at `place`, or None when nobody listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(place.socket))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def check_memory_limit() -> None:
    """Raises EngineError when this process may only use a limited address space.

    Host and engine would inherit the limit, and CUDA and torch reserve far more than they use.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        raise EngineError(
            f"this process may use only {limit >> 20} MiB of address space (RLIMIT_AS), which is no place to "
            "start an engine from. On Spark, unset spark.executor.pyspark.memory, and give the memory of "
            "the engine to spark.executor.memoryOverhead"
        )


def import_path(python: str) -> str:
    """Returns the `PYTHONPATH` of a host that `python` runs.

    Under this interpreter the host finds packages where its client does: clusters ship them on
    `PYTHONPATH`. An interpreter with an environment of its own gets our packages and nothing else.
    """
    paths = [str(_package_root())]
    if python == sys.executable:
        paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join(dict.fromkeys(paths))


def host_environment(slot: Slot, place: Place, python: str) -> dict[str, str]:
    """Returns the environment of the host of `slot` at `place` that `python` runs."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }
    environment.update(
        PYTHONPATH=import_path(python),
        PYTHONSAFEPATH="1",
        PYTHONUNBUFFERED="1",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        DO_NOT_TRACK="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
        VLLM_RPC_BASE_PATH=str(place.rpc),
        TOKENIZERS_PARALLELISM="false",
    )
    if not os.access(environment.get("HOME", ""), os.W_OK):
        environment["HOME"] = str(place.folder)
    if slot.gpu is not None and card_id(slot.gpu) is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return environment


def _package_root() -> Path:
    """Returns what `udfs` is imported from: a folder, or the zip that `--py-files` shipped."""
    return Path(udfs.__file__ or "").absolute().parent.parent


def _spawn(slot: Slot, settings: EngineSettings, place: Place) -> "subprocess.Popen[bytes]":
    python = settings.python or os.environ.get(PYTHON_VARIABLE) or sys.executable
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    order = {
        "settings": settings.model_dump(mode="json"),
        "slot": {"owner_pid": slot.owner_pid, "owner_start": slot.owner_start, "gpu": slot.gpu},
    }
    try:
        host = subprocess.Popen(
            [python, "-m", "udfs.engine.host"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=place.folder,
            env=host_environment(slot, place, python),
            start_new_session=True,
            close_fds=True,
        )
    except OSError as error:
        raise EngineError(f"cannot start the engine with {python}: {error}") from error
    finally:
        os.close(log)
    assert host.stdin is not None
    try:
        host.stdin.write(json.dumps(order).encode())
        host.stdin.close()
    except BrokenPipeError:
        pass  # it ended at once; whoever waits for its socket tells why
    logger.info("engine host started pid=%d log=%s", host.pid, place.log)
    return host


def _wait_for_socket(host: "subprocess.Popen[bytes]", place: Place) -> socket.socket:
    deadline = time.monotonic() + BIND_TIMEOUT_S
    while time.monotonic() < deadline:
        if (sock := try_connect(place)) is not None:
            _reap_later(host)
            return sock
        if (code := host.poll()) is not None:
            raise EngineError(
                f"the engine's host ended with code {code}; its log ({place.log}):\n{log_tail(place.log)}"
            )
        time.sleep(0.02)
    host.kill()
    raise EngineError(f"the engine's host did not listen in {BIND_TIMEOUT_S:.0f} s:\n{log_tail(place.log)}")


_children: "list[subprocess.Popen[bytes]]" = []


def _reap_later(host: "subprocess.Popen[bytes]") -> None:
    """Keeps `host` so that it is reaped when it ends, instead of warned about when it does not."""
    _children[:] = [child for child in _children if child.poll() is None]
    _children.append(host)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
