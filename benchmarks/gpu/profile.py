"""Where the card's time goes: kernels of a profile by what launched them, in milliseconds for each window.

`python -m benchmarks.gpu_captions --profile` has vLLM write a trace of `gpu_alone`; this reads it. A kernel
belongs to the vision tower when it was launched while the worker prepared a step, to the language model when
it was launched by its forward pass, and to sampling otherwise.
"""

import bisect
import gzip
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCOPES = {"preprocess": "vision tower and inputs", "forward": "language model"}
OTHER = "sampling and the rest"
MARK = "gpu_model_runner: "
KERNELS = {"kernel", "gpu_memcpy", "gpu_memset"}
COPIES = {"aten::cat", "aten::copy_", "aten::pin_memory", "aten::_pin_memory"}
MOST = 12


def read_profile(folder: Path, windows: int) -> dict[str, Any]:
    """Returns milliseconds a window of kernels, by scope and of the longest ones, and of waiting for them.

    What the worker did meanwhile stands under `worker_ms`; copies are within its other parts.

    Args:
        folder: where vLLM wrote its traces; the worker's is the largest.
        windows: captioned while it was written.
    """
    traces = sorted(folder.glob("*.json.gz"), key=lambda path: path.stat().st_size)
    with gzip.open(traces[-1]) as stream:
        events = json.load(stream)["traceEvents"]
    scopes = _Scopes(event for event in events if str(event.get("name", "")).startswith(MARK))
    launches = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    spent: dict[str, Counter[str]] = {}
    kernels: list[tuple[float, float, str]] = []
    for event in events:
        if event.get("cat") in KERNELS:
            scope = scopes.at(launches.get(event["args"].get("correlation")))
            spent.setdefault(scope, Counter())[_family(event["name"])] += event["dur"]
            kernels.append((event["ts"], event["ts"] + event["dur"], scope))
    idle_us = _idle(kernels)
    span_us = max(end for _, end, _ in kernels) - min(start for start, _, _ in kernels)

    def for_each(us: float) -> float:
        return round(us / 1000 / windows, 2)

    return {
        "span_ms": for_each(span_us),
        "busy_ms": for_each(span_us - sum(idle_us.values())),
        "idle_before_ms": {scope: for_each(us) for scope, us in idle_us.items()},
        "scopes": {
            scope: {"ms": for_each(by_name.total())}
            | {name: for_each(us) for name, us in by_name.most_common(MOST)}
            for scope, by_name in spent.items()
        },
        "worker_ms": {name: for_each(us) for name, us in _worker(events).most_common(MOST)},
    }


def _worker(events: list[dict[str, Any]]) -> Counter[str]:
    """How long the worker's parts took, its longest calls to the card's runtime and its copies among them."""
    spent: Counter[str] = Counter()
    for event in events:
        name, kind = str(event.get("name", "")), event.get("cat")
        if event.get("ph") == "X" and (
            (kind == "user_annotation" and name.startswith(MARK))
            or kind in ("cuda_runtime", "cuda_driver")
            or (kind == "cpu_op" and name in COPIES)
        ):
            spent[name.removeprefix(MARK)] += event["dur"]
    return spent


class _Scopes:
    """Finds the scope of a moment."""

    def __init__(self, events: Iterable[dict[str, Any]]) -> None:
        found = sorted(
            (event["ts"], event["ts"] + event["dur"], event["name"].removeprefix(MARK))
            for event in events
            if event.get("ph") == "X" and event.get("cat") == "user_annotation"
        )
        self._found = [one for one in found if one[2] in SCOPES]
        self._starts = [start for start, _, _ in self._found]

    def at(self, moment: float | None) -> str:
        """Returns the name of the scope; that of the rest when there is none."""
        if moment is None or (index := bisect.bisect_right(self._starts, moment) - 1) < 0:
            return OTHER
        _, end, name = self._found[index]
        return SCOPES[name] if moment <= end else OTHER


def _family(name: str) -> str:
    """The name of a kernel without its arguments."""
    return name.replace("void ", "").partition("<")[0].partition("(")[0][:60]


def _idle(kernels: list[tuple[float, float, str]]) -> dict[str, float]:
    """How long no kernel ran, by the scope of the one that ended it.

    Args:
        kernels: start, end and scope of each.
    """
    kernels.sort()
    idle: dict[str, float] = {}
    last = kernels[0][0]
    for start, end, scope in kernels:
        if start > last:
            idle[scope] = idle.get(scope, 0.0) + start - last
        last = max(last, end)
    return idle
