"""Windows through Captionlake's engine, fed by client processes that do what Spark's workers do.

`benchmarks.gpu_captions` starts the processes; each takes its order as JSON on the command line, says "ready"
when it has warmed up, begins when its standard input says so, and prints its figures as one line of JSON.
"""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

from benchmarks.gpu.processes import cpu_s, peak_mib
from benchmarks.gpu.work import WORKLOADS
from benchmarks.watching import Watcher
from conf.engine import EngineSettings
from jobs.idle import idle_share
from udfs.engine.client import THREAD_NAME, EngineClient
from udfs.engine.requests import EngineReading, Generation, Reply, Request
from udfs.engine.slot import Slot

SAMPLE_EVERY_S = 0.5


@dataclass(frozen=True)
class ClientOrder:
    """What one client process does.

    Attributes:
        settings: of the engine.
        work: name of the workload.
        folder: where clips are.
        slot: the engine's.
        run: number of this run of the engine.
        first: number of its first item.
        step: number of clients.
        items: items of all clients together.
    """

    settings: dict[str, Any]
    work: str
    folder: str
    slot: dict[str, Any]
    run: int
    first: int
    step: int
    items: int


def run_client(order: ClientOrder) -> None:
    """Has this client's share of the items answered."""
    work, settings = WORKLOADS[order.work], EngineSettings(**order.settings)
    items = work.items(Path(order.folder), order.run)
    mine = list(islice(items, order.first, order.items, order.step))
    warm = list(islice(items, work.warm_up))
    wanted = [window_id for item in mine for window_id in work.window_ids(item)]
    lengths = work.lengths(len(wanted) * order.step + 64)
    submitting_s = 0.0
    with EngineClient(settings, Slot(**order.slot)) as client:

        def submit(request: Request) -> "Future[Reply]":
            nonlocal submitting_s
            length = lengths[int(request.request_key) % len(lengths)]
            request = replace(request, generation=Generation(max_output_tokens=length))
            begun = time.thread_time()
            # As the UDFs do, so that whoever only looks on takes no share of the engine.
            reply = client.submit(request, settings.max_in_flight // order.step)
            submitting_s += time.thread_time() - begun
            return reply

        def handing_over_s() -> float:
            """CPU seconds of handing requests over and taking answers back."""
            return submitting_s + cpu_s_of_thread(THREAD_NAME)

        def answer(items: list[Any]) -> list[dict[str, Any]]:
            return list(work.answers(items, submit, max_pending=2 * settings.max_in_flight))

        assert answer(warm)
        print("ready", flush=True)
        sys.stdin.readline()
        before, handed_before = time.process_time(), handing_over_s()
        answers = answer(mine)
        spent, handing_over = time.process_time() - before, handing_over_s() - handed_before
    assert [answer["window_id"] for answer in answers] == wanted, "one row a window, in order"
    failed = [answer for answer in answers if answer[work.status] == "error"]
    assert not failed, failed[0]
    short = sum(answer["finish_reason"] != "length" for answer in answers)
    print(
        json.dumps(
            {
                "windows": len(answers),
                "ended_early": short,
                "prompt_tokens": sum(answer["prompt_tokens"] for answer in answers),
                "output_tokens": sum(answer["output_tokens"] for answer in answers),
                "cpu_s": spent,
                "handing_over_s": handing_over,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        ),
        flush=True,
    )


def cpu_s_of_thread(name: str) -> float:
    """CPU seconds that a thread of this process has used."""
    (ident,) = [thread.ident for thread in threading.enumerate() if thread.name == name]
    assert ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(ident))


class Engine:
    """One engine and its host, for measuring; ended when it is left.

    Args:
        settings: of the engine.
        slot: where it belongs.
    """

    def __init__(self, settings: EngineSettings, slot: Slot) -> None:
        self.settings = settings
        self.slot = slot
        self.client = EngineClient(settings, self.slot)

    def __enter__(self) -> "Engine":
        start = time.monotonic()
        self.status = self.client.wait_ready()
        self.start_s = time.monotonic() - start
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_host()
        self.client.close()

    def caption(
        self, work: str, folder: Path, *, run: int, clients: int, items: int, on_begin: Callable[[], None]
    ) -> dict[str, Any]:
        """Has `clients` processes ask for `items` items; returns the figures."""
        orders = [
            ClientOrder(
                self.settings.model_dump(mode="json"),
                work,
                str(folder),
                asdict(self.slot),
                run,
                first,
                clients,
                items,
            )
            for first in range(clients)
        ]
        processes = [_start(order) for order in orders]
        try:
            for process in processes:
                if _line(process) != "ready":
                    raise RuntimeError("a client ended before it was ready; what it said is above")
            on_begin()
            with Watch(self.client) as watch:
                start = time.monotonic()
                for process in processes:
                    assert process.stdin is not None
                    process.stdin.write("go\n")
                    process.stdin.flush()
                figures = [json.loads(_line(process)) for process in processes]
                wall_s = time.monotonic() - start
        finally:
            for process in processes:
                process.kill()
                process.wait()
        total = {name: sum(one[name] for one in figures) for name in figures[0]}
        windows = total["windows"]
        cpu_s = {"clients": total["cpu_s"], "of_that_handing_over": total["handing_over_s"]}
        return {
            "clients": clients,
            "windows": windows,
            "windows_per_s": windows / wall_s,
            "wall_s": wall_s,
            "ended_early": total["ended_early"],
            "prompt_tokens": total["prompt_tokens"] / windows,
            "output_tokens": total["output_tokens"] / windows,
            "output_tokens_per_s": total["output_tokens"] / wall_s,
            "gpu_idle_share": watch.idle_share(),
            "cpu_s_per_window": {
                name: seconds / windows for name, seconds in (cpu_s | watch.cpu_s()).items()
            },
            "peak_mib": {"client": max(one["peak_mib"] for one in figures), **watch.peak_mib()},
            "engine_start_s": self.start_s,
            "takes_bytes": self.status["takes_bytes"],
            "resolved": self.status["resolved"],
            "versions": self.status["versions"],
            "device": self.status["device"],
        }


class Watch(Watcher):
    """Reads the engine's counters, and what CPU time and memory its host and the engine use."""

    def __init__(self, client: EngineClient) -> None:
        super().__init__(SAMPLE_EVERY_S)
        self._client = client
        self._readings: list[EngineReading] = []
        self._host = int(client.status()["pid"])

    def __enter__(self) -> Self:
        self._before = cpu_s({self._host})
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._after = cpu_s({self._host})

    def look(self) -> bool:
        """Takes a reading."""
        if (busy_s := self._client.status()["busy_s"]) is not None:
            self._readings.append(EngineReading("engine", time.monotonic(), busy_s))
        return False

    def idle_share(self) -> float | None:
        """Share of the time in which no step of the engine ran."""
        return idle_share(self._readings)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of host and engine."""
        return {name: self._after[name] - self._before[name] for name in ("host", "engine")}

    def peak_mib(self) -> dict[str, float]:
        """Greatest resident memory of host and engine so far."""
        return peak_mib(self._host)


def _start(order: ClientOrder) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.gpu.clients", json.dumps(asdict(order))]
    # As in Spark's Python workers, which have one core each.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


if __name__ == "__main__":
    run_client(ClientOrder(**json.loads(sys.argv[1])))
