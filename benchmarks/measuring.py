"""Measuring work in processes of their own: CPU seconds with those of children, wall time, memory peak."""

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Cost:
    """What one piece of work cost.

    Attributes:
        cpu_s: user and system time, children included.
        wall_s: time that passed.
        peak_mib: greatest resident memory of the process itself, interpreter and libraries included.
        output: what the work returned.
    """

    cpu_s: float
    wall_s: float
    peak_mib: float
    output: Any


def measure(function: str, *arguments: str) -> Cost:
    """Runs `module:function` with text arguments in a fresh process, after a warm-up of its libraries.

    Raises:
        RuntimeError: the work failed; its output is in the message.
    """
    command = [sys.executable, "-m", "benchmarks.measuring", function, *arguments]
    # As in Spark's Python workers, which have one core each.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, timeout=3600)
    if done.returncode:
        raise RuntimeError(f"{function} {arguments} failed:\n{done.stderr[-4000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _warm_up() -> None:
    """Libraries are loaded once in the life of a worker, so that loading them is not measured."""
    from benchmarks import our_way
    from udfs.preview import make_preview
    from udfs.resize import resize_frame

    make_preview(np.zeros((2, 32, 32, 3), np.uint8), settings=our_way.PARAMS)
    resize_frame(np.zeros((64, 64, 3), np.uint8), 32, 32)


def main() -> None:
    """Does the work named on the command line and prints its cost as JSON."""
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    _warm_up()
    cpu_s, start = _cpu_s(), time.monotonic()
    output = function(*sys.argv[2:])
    cost = {"cpu_s": _cpu_s() - cpu_s, "wall_s": time.monotonic() - start}
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write("\n" + json.dumps({**cost, "peak_mib": peak_mib, "output": output}) + "\n")


if __name__ == "__main__":
    main()
