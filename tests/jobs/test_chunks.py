"""Commits are bounded, and two jobs that plan alike can be told apart by their cells."""

import itertools
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.chunks import CELL_CLIPS, Chunk, plan_chunks
from jobs.stage import CHUNKS_IN_FLIGHT, in_parallel

pending = st.dictionaries(
    st.one_of(st.integers(0, 40), st.integers(CELL_CLIPS - 20, CELL_CLIPS + 20), st.integers(0, 10**12)),
    st.integers(1, 30),
    max_size=60,
).map(lambda counts: sorted(counts.items()))


@given(pending=pending, per_commit=st.integers(1, 50))
def test_every_clip_is_in_exactly_one_chunk(pending: list[tuple[int, int]], per_commit: int) -> None:
    chunks = list(plan_chunks(pending, per_commit=per_commit))
    for clip_no, _ in pending:
        assert sum(chunk.first_clip_no <= clip_no <= chunk.last_clip_no for chunk in chunks) == 1
    assert sum(chunk.num_items for chunk in chunks) == sum(count for _, count in pending)
    for before, after in itertools.pairwise(chunks):
        assert before.last_clip_no < after.first_clip_no


@given(pending=pending, per_commit=st.integers(1, 50))
def test_a_commit_is_bounded_so_that_a_killed_driver_loses_little(
    pending: list[tuple[int, int]], per_commit: int
) -> None:
    for chunk in plan_chunks(pending, per_commit=per_commit):
        held = [count for clip_no, count in pending if chunk.first_clip_no <= clip_no <= chunk.last_clip_no]
        assert sum(held) == chunk.num_items
        assert chunk.num_items <= per_commit or len(held) == 1


@given(pending=pending, per_commit=st.integers(1, 50))
def test_a_chunk_lies_in_one_cell_whatever_its_size(pending: list[tuple[int, int]], per_commit: int) -> None:
    for chunk in plan_chunks(pending, per_commit=per_commit):
        assert chunk.first_clip_no // CELL_CLIPS == chunk.last_clip_no // CELL_CLIPS == chunk.cell


@given(pending=pending)
def test_no_commit_is_smaller_than_it_need_be(pending: list[tuple[int, int]]) -> None:
    """Each commit costs a second; neighbours in a cell that fit together are one commit."""
    chunks = list(plan_chunks(pending, per_commit=20))
    for before, after in itertools.pairwise(chunks):
        first = next(count for clip_no, count in pending if clip_no == after.first_clip_no)
        assert before.cell != after.cell or before.num_items + first > 20


@pytest.mark.parametrize("clip_no", [0, CELL_CLIPS - 1, CELL_CLIPS, 10 * CELL_CLIPS + 7])
def test_the_conditions_of_a_chunk_name_its_clips_and_its_cell(clip_no: int) -> None:
    chunk = Chunk(clip_no, clip_no, 1)
    assert chunk.where == f"clip_no BETWEEN {clip_no} AND {clip_no}"
    first, last = (int(word) for word in chunk.cell_where.split() if word.isdigit())
    assert first <= clip_no <= last
    assert (first % CELL_CLIPS, last - first + 1) == (0, CELL_CLIPS)


def test_the_example_of_the_docstring_holds() -> None:
    assert list(plan_chunks([(0, 2), (1, 2), (5, 1)], per_commit=3)) == [Chunk(0, 0, 2), Chunk(1, 5, 3)]
    assert list(plan_chunks([], per_commit=3)) == []


def test_after_a_failure_no_chunk_is_begun_and_those_under_way_end() -> None:
    chunks = [Chunk(number, number, 1) for number in range(10)]
    together = threading.Barrier(CHUNKS_IN_FLIGHT)
    failed = threading.Event()
    begun, ended = set(), set()

    def work(chunk: Chunk) -> None:
        begun.add(chunk.first_clip_no)
        together.wait(timeout=60)
        if chunk.first_clip_no == 0:
            failed.set()
            raise ValueError("the first one")
        assert failed.wait(timeout=60)
        time.sleep(0.5)  # until the failure has been told
        ended.add(chunk.first_clip_no)

    with pytest.raises(ValueError, match="the first one"):
        in_parallel(work, chunks)
    assert begun == set(range(CHUNKS_IN_FLIGHT))
    assert ended == begun - {0}
