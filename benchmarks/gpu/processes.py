"""CPU time and memory of processes, by what Linux says of them."""

import os
from collections.abc import Collection
from contextlib import suppress

from udfs.engine.slot import PROC, process_group_and_session

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(hosts: Collection[int]) -> dict[str, float]:
    """CPU seconds so far of the cluster: Python workers, JVMs, and the sessions that `hosts` lead."""
    stats: dict[int, tuple[str, list[str]]] = {}
    for entry in PROC.glob("[0-9]*"):
        with suppress(OSError):
            start, _, rest = (entry / "stat").read_text().rpartition(")")
            stats[int(entry.name)] = (start.partition("(")[2], rest.split())
    used = {"workers": 0.0, "java": 0.0, "host": 0.0, "engine": 0.0}
    for pid, (command, fields) in stats.items():
        if int(fields[3]) in hosts:
            name = "host" if pid in hosts else "engine"
        elif _is_mine(pid, stats):
            name = "java" if command == "java" else "workers"
        else:
            continue
        # Children that have ended included.
        used[name] += sum(map(int, fields[11:15])) / TICKS_PER_S
    return used


def _is_mine(pid: int, stats: dict[int, tuple[str, list[str]]]) -> bool:
    """Whether this process is an ancestor of `pid`."""
    while pid in stats:
        pid = int(stats[pid][1][1])
        if pid == os.getpid():
            return True
    return False


def peak_mib(host: int) -> dict[str, float]:
    """Greatest resident memory so far of a host, and of any other process of the session that it leads."""
    peaks = {"host": 0.0, "engine": 0.0}
    for pid in (int(folder.name) for folder in PROC.glob("[0-9]*")):
        if (process_group_and_session(pid) or (0, 0))[1] == host:
            name = "host" if pid == host else "engine"
            peaks[name] = max(peaks[name], _peak_mib(pid))
    return peaks


def _peak_mib(pid: int) -> float:
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
