"""Reading ahead while answering in order.

A pandas UDF's rows attach by position, so results must leave in the order in which rows came, while
requests of many batches are in flight.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    batches: Iterable[list[T]], start: Callable[[T], "list[Future[R]]"], *, max_pending: int
) -> Iterator[list[list[R]]]:
    """Starts the work of each item as early as allowed and yields results batch by batch, in order.

    Args:
        batches: the items, in batches.
        start: starts one item; returns a future for each of its parts. May block for backpressure.
        max_pending: parts started and not yet yielded, above which nothing new is started.

    Yields:
        For each batch, for each of its items, the results of its parts.

    Raises:
        Exception: what a future raises.
    """
    started: deque[list[list[Future[R]]]] = deque()
    for batch in batches:
        started.append([start(item) for item in batch])
        while started and (_all_done(started[0]) or _parts(started) >= max_pending):
            yield _results(started.popleft())
    while started:
        yield _results(started.popleft())


def done(value: R) -> "Future[R]":
    """A future whose result is there already."""
    future: Future[R] = Future()
    future.set_result(value)
    return future


def _all_done(batch: "list[list[Future[R]]]") -> bool:
    return all(future.done() for item in batch for future in item)


def _parts(started: "deque[list[list[Future[R]]]]") -> int:
    return sum(len(item) for batch in started for item in batch)


def _results(batch: "list[list[Future[R]]]") -> list[list[R]]:
    return [[future.result() for future in item] for item in batch]
