"""How long an engine works: the time of its steps, by the card's clock where it has a card."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)


class Clock(Protocol):
    """Tells how long work takes where it is done."""

    def mark(self) -> Any:
        """Returns a mark of the moment at which the work that was begun so far is done."""

    def seconds(self, start: Any, end: Any) -> float | None:
        """Returns the time between two marks in seconds; None while the later one is still to come."""


class HostClock:
    """The clock of the processor, whose work is done when a call returns."""

    def mark(self) -> float:
        """Returns now."""
        return time.monotonic()

    def seconds(self, start: float, end: float) -> float:
        """Returns the time between two marks in seconds."""
        return end - start


class CudaClock:
    """The clock of a card, which works through its stream long after the calls have returned.

    A stream does one thing after the other, and a mark is stamped when its turn comes. So the times of steps
    never overlap, however early they are launched. Nothing waits for the card.
    """

    def mark(self) -> Any:
        """Returns an event at the end of the current stream."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float | None:
        """Returns the time between two events in seconds; None while the later one is still to come."""
        return start.elapsed_time(end) / 1000 if end.query() else None


class StepMeter:
    """Adds up the time of an engine's steps. What fails in here does not fail the step.

    Args:
        busy_s: `float64` of shape (1,), to which the seconds of each step are added once they are known, at
            the latest with the next step; NaN from when they cannot be told any more.
        clock: of what the engine runs on.
    """

    def __init__(self, busy_s: npt.NDArray[np.float64], clock: Clock) -> None:
        self._busy_s = busy_s
        self._clock = clock
        self._start: Any = None
        self._unknown: deque[tuple[Any, Any]] = deque()

    def begin(self, scheduled: Any) -> None:
        """A step begins; one without tokens is none.

        Args:
            scheduled: vLLM's `SchedulerOutput`.
        """
        self._guard(lambda: self._begin(scheduled.total_num_scheduled_tokens))

    def end(self) -> None:
        """The step that began last ends, if it has not ended yet."""
        self._guard(self._end)

    def _begin(self, num_tokens: int) -> None:
        self._add_known()
        self._start = self._clock.mark() if num_tokens else None

    def _end(self) -> None:
        if self._start is not None:
            self._unknown.append((self._start, self._clock.mark()))
            self._start = None
        self._add_known()

    def _add_known(self) -> None:
        while self._unknown and (seconds := self._clock.seconds(*self._unknown[0])) is not None:
            self._busy_s[0] += seconds
            self._unknown.popleft()

    def _guard(self, action: Callable[[], None]) -> None:
        if math.isnan(self._busy_s[0]):
            return
        try:
            action()
        except Exception:
            self._busy_s[0] = math.nan
            logger.exception("the engine's steps are not metered any more")


def meter_steps(runner: Any, busy_s: npt.NDArray[np.float64]) -> None:
    """Has a `StepMeter` add up the steps of vLLM's model runner from now on.

    A step is a call of `execute_model`, and one of `sample_tokens` where that has left the sampling to it.

    Args:
        runner: vLLM's model runner, with its `device`.
        busy_s: see `StepMeter`.
    """
    meter = StepMeter(busy_s, CudaClock() if runner.device.type == "cuda" else HostClock())
    execute, sample = runner.execute_model, getattr(runner, "sample_tokens", None)

    def execute_model(scheduler_output: Any, *args: Any, **named: Any) -> Any:
        meter.begin(scheduler_output)
        output = execute(scheduler_output, *args, **named)
        if output is not None or sample is None:
            meter.end()
        return output

    runner.execute_model = execute_model
    if sample is not None:
        runner.sample_tokens = _with_end(sample, meter)


def _with_end(call: Callable[..., Any], meter: StepMeter) -> Callable[..., Any]:
    """A call with which a step ends."""

    def ending(*args: Any, **named: Any) -> Any:
        output = call(*args, **named)
        meter.end()
        return output

    return ending
