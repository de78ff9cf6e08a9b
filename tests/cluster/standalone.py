"""A real Spark standalone cluster on loopback: one master and two workers with a GPU each."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

START_S = 60.0
END_S = 30.0
MARK = "CLUSTER_OF_TEST"
"""A variable that each process of the cluster and of its applications inherits."""


@dataclass
class Cluster:
    """Master and workers, and where they keep things.

    Attributes:
        spark_home: the Spark that runs.
        folder: logs and the workers' folders.
        environment: of every process.
        daemons: the master, then the workers.
        url: what `--master` takes.
    """

    spark_home: Path
    folder: Path
    environment: dict[str, str]
    daemons: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    url: str = ""

    def start(self, *, num_workers: int, memory: str) -> None:
        """Starts the master and its workers, and returns when all have met."""
        master = "org.apache.spark.deploy.master.Master"
        self._start("master", master, "--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
        self.url = self._said("master", r"Starting Spark master at (spark://127\.0\.0\.1:\d+)")
        worker = "org.apache.spark.deploy.worker.Worker"
        for number in range(num_workers):
            place = ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]
            place += ["--work-dir", str(self.folder / f"work_{number}")]
            self._start(f"worker_{number}", worker, *place, "--cores", "1", "--memory", memory, self.url)
        for number in range(num_workers):
            self._said(f"worker_{number}", r"(Successfully registered with master)")

    def others(self) -> list[int]:
        """Living processes of the applications: the cluster's, without master and workers."""
        daemons = {daemon.pid for daemon in self.daemons}
        return [pid for pid in _marked(str(self.folder)) if pid not in daemons]

    def left_over(self) -> list[int]:
        """What is still there some time after an application has ended."""
        deadline = time.monotonic() + END_S
        while (left := self.others()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def stop(self) -> None:
        """Ends everything that `start` and the applications have started."""
        for daemon in reversed(self.daemons):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGTERM)
        for daemon in self.daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
        for pid in _marked(str(self.folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self.daemons:
            daemon.wait()

    def _start(self, name: str, main_class: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [str(self.spark_home / "bin" / "spark-class"), main_class, *arguments]
            daemon = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.daemons.append(daemon)

    def _said(self, name: str, pattern: str) -> str:
        deadline = time.monotonic() + START_S
        log = self.folder / f"{name}.log"
        while time.monotonic() < deadline:
            if found := re.search(pattern, log.read_text()):
                return found[1]
            time.sleep(0.1)
        raise AssertionError(f"{name} did not start:\n{log.read_text()[-4000:]}")


@contextlib.contextmanager
def standalone_cluster(
    spark_home: Path, folder: Path, environment: dict[str, str], *, memory: str
) -> Iterator[Cluster]:
    """A cluster of two workers for the length of a block; nothing of it is left behind.

    Args:
        spark_home: the Spark that is to run.
        folder: an empty folder for logs and the workers' folders.
        environment: of master and workers; `SPARK_WORKER_OPTS` says what a worker has.
        memory: heap that a worker has to give away, e.g. `1g`.
    """
    daemons = {
        "SPARK_HOME": str(spark_home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "256m",
        MARK: str(folder),
    }
    cluster = Cluster(spark_home, folder, environment | daemons)
    try:
        cluster.start(num_workers=2, memory=memory)
        yield cluster
    finally:
        cluster.stop()


def _marked(mark: str) -> list[int]:
    """Processes that inherited the mark; those that have ended and wait to be reaped do not count."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
