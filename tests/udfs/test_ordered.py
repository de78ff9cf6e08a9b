"""Reading ahead must never put one clip's answer on another."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.ordered import done, in_order

Batches = list[list[tuple[int, int]]]
"""Batches of items; an item is a number and how many parts it has."""


def numbered(shape: list[list[int]]) -> Batches:
    numbers = iter(range(10**6))
    return [[(next(numbers), parts) for parts in batch] for batch in shape]


def expected(batches: Batches) -> list[list[list[tuple[int, int]]]]:
    return [[[(item, part) for part in range(parts)] for item, parts in batch] for batch in batches]


shapes = st.lists(st.lists(st.integers(0, 4), max_size=5), max_size=8)


@given(shape=shapes, max_pending=st.integers(1, 12), seed=st.integers(0, 1000))
def test_every_answer_stays_with_its_item_in_whatever_order_work_ends(
    shape: list[list[int]], max_pending: int, seed: int
) -> None:
    batches, order = numbered(shape), random.Random(seed)
    open_futures: list[tuple[Future[tuple[int, int]], tuple[int, int]]] = []
    changed = threading.Condition()
    ended = False

    def start(item: tuple[int, int]) -> list[Future[tuple[int, int]]]:
        futures: list[Future[tuple[int, int]]] = [Future() for _ in range(item[1])]
        with changed:
            open_futures.extend((future, (item[0], part)) for part, future in enumerate(futures))
            changed.notify()
        return futures

    def answer() -> None:
        while True:
            with changed:
                changed.wait_for(lambda: open_futures or ended)
                if not open_futures:
                    return
                future, value = open_futures.pop(order.randrange(len(open_futures)))
            future.set_result(value)

    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(answer) for _ in range(2)]
        try:
            results = list(in_order(batches, start, max_pending=max_pending))
        finally:
            with changed:
                ended = True
                changed.notify_all()
    for worker in workers:
        worker.result()
    assert results == expected(batches)


@given(shape=shapes, max_pending=st.integers(1, 12))
def test_no_more_is_read_ahead_than_allowed_however_slow_the_model_is(
    shape: list[list[int]], max_pending: int
) -> None:
    """Parts are answered only when somebody waits for them, so that all that may be pending is."""
    batches = numbered(shape)
    largest = max((sum(parts for _, parts in batch) for batch in batches), default=0)
    pending = most = 0

    class Lazy(Future[int]):
        def done(self) -> bool:
            return False

        def result(self, timeout: float | None = None) -> int:
            nonlocal pending
            pending -= 1
            return 0

    def start(item: tuple[int, int]) -> list[Future[int]]:
        nonlocal pending, most
        pending += item[1]
        most = max(most, pending)
        return [Lazy() for _ in range(item[1])]

    list(in_order(batches, start, max_pending=max_pending))
    assert pending == 0
    # A batch that comes is started whole; before that, fewer than max_pending parts were waiting.
    assert most <= max_pending - 1 + largest


def test_the_card_works_on_later_batches_while_the_first_one_waits() -> None:
    slow: Future[str] = Future()
    started: list[str] = []

    def start(name: str) -> list[Future[str]]:
        started.append(name)
        return [slow if name == "slow" else done(name)]

    def batches() -> Iterator[list[str]]:
        yield ["slow"]
        yield ["b", "c"]
        yield ["d"]
        threading.Timer(0.05, slow.set_result, ["slow"]).start()
        time.sleep(0.2)
        yield ["e"]

    results = in_order(batches(), start, max_pending=100)
    assert next(results) == [["slow"]]
    assert started == ["slow", "b", "c", "d", "e"]
    assert list(results) == [[["b"], ["c"]], [["d"]], [["e"]]]


def test_a_batch_that_is_done_is_handed_on_before_more_input_is_awaited() -> None:
    """Else Spark would hold all answers back until its whole input is read."""
    read: list[int] = []

    def batches() -> Iterator[list[int]]:
        for number in range(3):
            read.append(number)
            yield [number]

    results = in_order(batches(), lambda number: [done(number)], max_pending=100)
    assert next(results) == [[0]]
    assert read == [0]
    assert list(results) == [[[1]], [[2]]]


def test_an_empty_batch_and_an_item_without_parts_keep_their_place() -> None:
    results = in_order([[2], [], [0, 1]], lambda n: [done(part) for part in range(n)], max_pending=1)
    assert list(results) == [[[0, 1]], [], [[], [0]]]


def test_a_dead_engine_stops_the_task_and_is_not_a_silent_gap() -> None:
    def start(number: int) -> list[Future[int]]:
        future: Future[int] = Future()
        if number == 1:
            future.set_exception(ConnectionError("the engine died"))
        else:
            future.set_result(number)
        return [future]

    results = in_order([[0], [1], [2]], start, max_pending=100)
    assert next(results) == [[0]]
    with pytest.raises(ConnectionError, match="the engine died"):
        list(results)


def test_an_error_on_starting_an_item_stops_the_task() -> None:
    def start(number: int) -> list[Future[int]]:
        raise ValueError("cannot be started")

    with pytest.raises(ValueError, match="cannot be started"):
        list(in_order([[0]], start, max_pending=1))
