"""The whole job in Spark, from Delta to Delta, on the cards of one machine.

`benchmarks.gpu_captions` has it run for each number of cards, each time in a process of its own
(`benchmarks.gpu.spark_job`), on a cluster whose executors have a card each, as `conf/gpu_cluster.yaml` has
them. Without a card the addresses are made up, and engines run on the CPU.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.card import Card
from benchmarks.gpu.cluster import ROOT, SparkOrder, spark_home
from benchmarks.gpu.spark_job import FIGURES_MARK, POLL_S, READY_MARK
from udfs.engine.runtime import RUNTIME_DIR_VARIABLE, group_members, kill_group, log_tail, read_holder

LEAVING_S = 60.0


def run_spark(order: SparkOrder) -> dict[str, Any]:
    """Carries out the order in a process of its own; returns the figures, those of the cards among them.

    Raises:
        RuntimeError: it failed; the ends of all logs are on stderr.
    """
    place = Path(order.place)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with ExitStack() as stack:
        stack.enter_context(_executor_logs(place / "work"))
        runtime = stack.enter_context(_runtime(place))
        cards = {address: stack.enter_context(Card(address)) for address in order.addresses}
        paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {
            "SPARK_LOCAL_IP": "127.0.0.1",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            RUNTIME_DIR_VARIABLE: str(runtime),
        }
        command = [sys.executable, "-m", "benchmarks.gpu.spark_job", json.dumps(asdict(order))]
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=place)
        )
        figures = _figures(process, cards)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LEAVING_S)
        process.kill()
    if figures is None:
        _show_logs(place)
        raise RuntimeError(f"the job in Spark failed with code {process.returncode}; its logs are in {place}")
    if process.returncode:
        figures["problems"].append(f"the job's process ended with code {process.returncode}; see {place}")
    return figures


def _figures(process: "subprocess.Popen[str]", cards: dict[str, Card]) -> dict[str, Any] | None:
    """What the process prints, and what its cards did once the engines were ready; None where it failed."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(READY_MARK):
            for card in cards.values():
                card.readings.clear()
        elif line.startswith(FIGURES_MARK):
            figures: dict[str, Any] = json.loads(line.removeprefix(FIGURES_MARK))
            for engine in figures["engines"]:
                engine["card"] = cards[engine["address"]].figures() if engine["address"] in cards else {}
            return figures
        else:
            sys.stderr.write(line)
    return None


@contextmanager
def _runtime(place: Path) -> Iterator[Path]:
    """A folder for the engines; when it is left, no engine has a card any more, and logs are in `place`."""
    folder = Path(tempfile.mkdtemp(prefix="captionlake-"))
    try:
        yield folder
    finally:
        deadline = time.monotonic() + LEAVING_S
        for holder in filter(None, map(read_holder, folder.glob("*.lock"))):
            while group_members(holder) and time.monotonic() < deadline:
                time.sleep(POLL_S)
            kill_group(holder)
        for path in folder.glob("*.log"):
            shutil.copy(path, place)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _executor_logs(folder: Path) -> Iterator[None]:
    """Moves what the executors have written to `folder`: a cluster in one process keeps it beside Spark."""
    work = spark_home() / "work"
    before = set(work.glob("app-*"))
    try:
        yield
    finally:
        folder.mkdir()
        for application in set(work.glob("app-*")) - before:
            shutil.move(application, folder)
        with suppress(OSError):
            work.rmdir()


def _show_logs(place: Path) -> None:
    for path in (*sorted(place.glob("work/*/*/stderr")), *sorted(place.glob("*.log"))):
        sys.stderr.write(f"\n== the end of {path}\n{log_tail(path, num_lines=60)}\n")
