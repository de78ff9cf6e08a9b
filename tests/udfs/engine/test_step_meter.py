"""The time of steps: each counts once, none twice, and the meter never stands in a step's way."""

import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from udfs.engine.step_meter import StepMeter
from udfs.engine.worker import WorkerExtension

STEP_S = 0.02


class Runner:
    """Has the methods of vLLM's model runner that make a step; where `samples`, the second one ends it."""

    device = SimpleNamespace(type="cpu")

    def __init__(self, *, samples: bool) -> None:
        self.samples = samples
        self.worked_s = 0.0

    def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None) -> str | None:
        self._work()
        return None if self.samples else f"executed {scheduler_output.total_num_scheduled_tokens}"

    def sample_tokens(self, grammar_output: Any) -> str:
        self._work()
        return f"sampled {grammar_output}"

    def _work(self) -> None:
        start_s = time.monotonic()
        time.sleep(STEP_S)
        self.worked_s += time.monotonic() - start_s


class LateClock:
    """A card's clock: what happens between two marks is known when the test says so."""

    def __init__(self) -> None:
        self.marks = 0
        self.reached = 0

    def mark(self) -> int:
        self.marks += 1
        return self.marks

    def seconds(self, start: int, end: int) -> float | None:
        return float(end - start) if end <= self.reached else None


def scheduled(num_tokens: int) -> Any:
    return SimpleNamespace(total_num_scheduled_tokens=num_tokens)


def metered(runner: Any, tmp_path: Any) -> Any:
    """Has a runner metered as the host does; returns the counter."""
    path = tmp_path / "busy"
    path.write_bytes(bytes(8))
    extension = WorkerExtension()
    extension.model_runner = runner
    extension.meter_steps(str(path))
    return np.memmap(path, dtype=np.float64, mode="r", shape=(1,))


def test_a_step_is_execution_and_sampling_where_there_is_some(tmp_path: Any) -> None:
    runner = Runner(samples=True)
    busy_s = metered(runner, tmp_path)
    start_s = time.monotonic()
    assert runner.execute_model(scheduled(3), None) is None
    assert busy_s[0] == 0
    assert runner.sample_tokens("grammar") == "sampled grammar"
    assert 2 * STEP_S <= runner.worked_s <= busy_s[0] <= time.monotonic() - start_s


def test_a_step_without_sampling_ends_with_its_execution(tmp_path: Any) -> None:
    runner = Runner(samples=False)
    busy_s = metered(runner, tmp_path)
    start_s = time.monotonic()
    assert runner.execute_model(scheduled(3)) == "executed 3"
    assert runner.worked_s <= busy_s[0] <= time.monotonic() - start_s


def test_a_runner_that_cannot_sample_has_steps_too(tmp_path: Any) -> None:
    whole = Runner(samples=True)
    runner = SimpleNamespace(device=Runner.device, execute_model=whole.execute_model)
    busy_s = metered(runner, tmp_path)
    assert runner.execute_model(scheduled(3)) is None
    assert 0 < whole.worked_s <= busy_s[0]
    assert not hasattr(runner, "sample_tokens")


def test_only_steps_with_tokens_count_and_the_time_between_them_does_not(tmp_path: Any) -> None:
    runner = Runner(samples=False)
    busy_s = metered(runner, tmp_path)
    runner.execute_model(scheduled(0))
    runner.sample_tokens(None)
    assert busy_s[0] == 0
    start_s = time.monotonic()
    runner.execute_model(scheduled(1))
    time.sleep(3 * STEP_S)
    runner.execute_model(scheduled(1))
    assert 2 * STEP_S <= busy_s[0] <= time.monotonic() - start_s - 3 * STEP_S


def test_a_card_s_time_is_added_when_it_is_known_however_far_the_launches_are_ahead() -> None:
    busy_s, clock = np.zeros(1), LateClock()
    meter = StepMeter(busy_s, clock)

    def step(reached: int) -> float:
        clock.reached = reached
        meter.begin(scheduled(1))
        meter.end()
        return float(busy_s[0])

    # Marks 1 and 2 belong to the first step, 3 and 4 to the second, and so on.
    assert [step(0), step(1), step(2), step(7), step(10)] == [0, 0, 1, 3, 5]
    assert busy_s[0] == clock.marks / 2


def test_a_step_that_fails_or_is_cut_short_does_not_count() -> None:
    busy_s, clock = np.zeros(1), LateClock()
    clock.reached = 100
    meter = StepMeter(busy_s, clock)
    meter.begin(scheduled(1))
    meter.begin(scheduled(1))
    meter.end()
    meter.end()
    assert busy_s[0] == 1


def test_a_meter_that_fails_leaves_the_step_alone_and_says_that_it_does_not_know(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner(samples=True)
    busy_s = metered(runner, tmp_path)
    without_count: Any = object()
    assert runner.execute_model(without_count) is None
    assert math.isnan(busy_s[0])
    assert runner.sample_tokens("g") == "sampled g"
    runner.execute_model(scheduled(1))
    runner.sample_tokens("g")
    assert math.isnan(busy_s[0])
    assert caplog.text.count("not metered any more") == 1
