"""How much of a run its GPUs stood still, from readings of the engines' meters."""

from collections.abc import Iterable, Sequence

import numpy as np

from udfs.engine.requests import EngineReading

MARGIN = 0.05
"""Share of an engine's time at either end that is left out: the first windows and the last stragglers."""


def idle_share(readings: Iterable[EngineReading]) -> float | None:
    """The share of time that engines spent outside their steps.

    What is between two readings is taken to be even. Of each engine the time between its first and its last
    reading counts, less `MARGIN` at either end; engines count by their time.

    Args:
        readings: of any engines, in any order.

    Returns:
        Between 0 and 1; None where no engine has two readings at different times.

    >>> idle_share([EngineReading("a", 0.0, 0.0), EngineReading("a", 100.0, 75.0)])
    0.25
    """
    spans = [_inner_span(curve) for curve in _by_engine(readings).values()]
    wall_s = sum(seconds for seconds, _ in spans)
    busy_s = sum(busy for _, busy in spans)
    # A step counts as a whole when it ends, so the first one may have begun before the time that counts.
    return max(0.0, 1 - busy_s / wall_s) if wall_s > 0 else None


def _by_engine(readings: Iterable[EngineReading]) -> dict[str, list[EngineReading]]:
    """The readings of each engine in the order of time."""
    curves: dict[str, list[EngineReading]] = {}
    for reading in sorted(readings, key=lambda reading: reading.at_s):
        curves.setdefault(reading.engine_id, []).append(reading)
    return curves


def _inner_span(curve: Sequence[EngineReading]) -> tuple[float, float]:
    """The seconds of an engine that count, and how many of them it was busy."""
    at_s = [reading.at_s for reading in curve]
    margin_s = MARGIN * (at_s[-1] - at_s[0])
    start_s, end_s = at_s[0] + margin_s, at_s[-1] - margin_s
    before, after = np.interp([start_s, end_s], at_s, [reading.busy_s for reading in curve])
    return end_s - start_s, float(after - before)
