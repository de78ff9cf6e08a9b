"""Every row is written exactly once, whoever else writes, kills or deletes."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark.sql import DataFrame, Row

from conf.identity import ConfigIdentity
from jobs.chunks import Chunk
from jobs.commits import commit_rows
from jobs.configs import record_configs
from jobs.lake import Lake
from schemas.configs import CONFIGS
from schemas.previews import PREVIEWS
from tests.jobs.rows import frame_of

CHUNK = Chunk(0, 9, 10)
PATIENCE_S = 120


def previews(lake: Lake, *clip_nos: int, config: str = "p1", attempt: int = 1) -> DataFrame:
    """One preview for each clip, as a stage hands it over."""
    rows = [
        {
            "window_id": f"w{clip_no}",
            "preview_config_id": config,
            "clip_no": clip_no,
            "attempt": attempt,
            "preview_status": "error" if clip_no == 7 else "success",
        }
        for clip_no in clip_nos
    ]
    return frame_of(lake.spark, PREVIEWS, *rows, stamped=False).coalesce(1)


def commit(
    lake: Lake, rows: DataFrame, *, config: str = "p1", run_id: str = "a", chunk: Chunk = CHUNK
) -> Counter[str]:
    return commit_rows(lake, PREVIEWS, rows, config=("preview_config_id", config), chunk=chunk, run_id=run_id)


def held(lake: Lake) -> list[Row]:
    columns = ("clip_no", "preview_config_id", "attempt", "run_id", "commit_seq", "created_at")
    return sorted(lake.read(PREVIEWS).select(*columns).collect(), key=tuple)


def test_rows_are_stamped_once_and_a_second_commit_of_the_same_rows_adds_nothing(lake: Lake) -> None:
    before = datetime.now()
    assert commit(lake, previews(lake, 0, 1, 7)) == {"success": 2, "error": 1}
    assert commit(lake, previews(lake, 0, 1, 7), run_id="b") == {}
    assert commit(lake, previews(lake, 0, 1, 2), run_id="b") == {"success": 1}
    assert commit(lake, previews(lake, 7, attempt=2), run_id="c") == {"error": 1}
    rows = held(lake)
    assert [(row.clip_no, row.attempt, row.run_id) for row in rows] == [
        (0, 1, "a"),
        (1, 1, "a"),
        (2, 1, "b"),
        (7, 1, "a"),
        (7, 2, "c"),
    ]
    first, later, last = (next(r.commit_seq for r in rows if r.run_id == run) for run in "abc")
    assert first < later < last
    assert all(abs(row.created_at - before) < timedelta(minutes=10) for row in rows)


def test_rows_that_a_user_deleted_are_written_again_without_a_long_fight(lake: Lake) -> None:
    """Delta remembers a higher number than the rows that are left show, and refuses lower ones."""
    commit(lake, previews(lake, 0, 1))
    commit(lake, previews(lake, 2))
    for deleted, run_id in (("clip_no = 2", "b"), ("true", "c")):
        lake.delta(PREVIEWS).delete(deleted)
        version = lake.version(PREVIEWS)
        added = commit(lake, previews(lake, 0, 1, 2), run_id=run_id)
        assert sum(added.values()) == (1 if deleted == "clip_no = 2" else 3)
        assert [row.clip_no for row in held(lake)] == [0, 1, 2]
        assert lake.version(PREVIEWS) == version + 1
    assert commit(lake, previews(lake, 0, 1, 2), run_id="d") == {}
    assert commit(lake, previews(lake, 3), run_id="d") == {"success": 1}


def slowed(rows: DataFrame, folder: Path, *, block_at: int) -> DataFrame:
    """The same rows, whose n-th evaluation waits until `folder/go` exists.

    A commit to a range that holds rows evaluates its own twice, to see what is missing and to write it.
    So another writer can be let in at two moments: before the transaction begins, and before it ends.
    """
    calls, reached, go = (str(folder / name) for name in ("calls", "reached", "go"))

    def wait(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            with open(calls, "a+") as log:  # noqa: PTH123
                log.write("x")
                number = log.tell()
            if number == block_at:
                Path(reached).touch()
                end = time.monotonic() + PATIENCE_S
                while not Path(go).exists() and time.monotonic() < end:
                    time.sleep(0.02)
            yield batch

    return rows.mapInPandas(wait, rows.schema)


def wait_for(path: Path, work: "Future[object]") -> None:
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert not work.done(), f"{path} never came: {work.exception() or work.result()}"
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("other", "block_at", "added"),
    [
        # The same job started twice: the second writer has nothing to add.
        ({"clip_nos": (0, 1)}, 1, {}),
        ({"clip_nos": (0, 1)}, 2, {}),
        # The same config with other chunks in the same cell: both write.
        ({"clip_nos": (8, 9), "chunk": Chunk(8, 9, 2)}, 2, {"success": 2}),
        # Another config: both write, and neither has to try again.
        ({"clip_nos": (0, 1), "config": "p2"}, 2, {"success": 2}),
    ],
    ids=["same rows before it begins", "same rows", "other rows", "other config"],
)
def test_of_two_writers_that_planned_on_one_snapshot_each_row_is_written_by_exactly_one(
    lake: Lake, tmp_path: Path, block_at: int, other: dict[str, Any], added: dict[str, int]
) -> None:
    config = other.get("config", "p1")
    commit(lake, previews(lake, 5))
    slow_rows = slowed(previews(lake, 0, 1), tmp_path, block_at=block_at)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(commit, lake, slow_rows, run_id="slow", chunk=Chunk(0, 5, 2))
        try:
            wait_for(tmp_path / "reached", slow)
            rows = previews(lake, *other["clip_nos"], config=config)
            fast = commit(lake, rows, run_id="fast", config=config, chunk=other.get("chunk", Chunk(0, 5, 2)))
        finally:
            (tmp_path / "go").touch()
        assert slow.result() == added
    assert fast == {"success": 2}
    rows_held = held(lake)
    keys = [(row.clip_no, row.preview_config_id) for row in rows_held]
    assert len(keys) == len(set(keys)) == 3 + sum(added.values())
    evaluations = len((tmp_path / "calls").read_text())
    # Two for a try that writes, one for a try that finds nothing missing or is skipped by Delta.
    assert evaluations == (2 if config == "p2" else block_at + (2 if added else 1))


def test_many_writers_of_many_configs_at_once_lose_and_double_nothing(lake: Lake) -> None:
    """Four threads: two run the same job, two run jobs of their own."""
    barrier = threading.Barrier(4)

    def work(config: str, run_id: str) -> Counter[str]:
        rows = previews(lake, 0, 1, 2, config=config)
        barrier.wait(PATIENCE_S)
        return commit(lake, rows, config=config, run_id=run_id)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work, *job) for job in (("p1", "a"), ("p1", "b"), ("p2", "c"), ("p3", "d"))]
        counts = [future.result() for future in futures]
    rows = held(lake)
    assert [(row.clip_no, row.preview_config_id) for row in rows] == [
        (clip_no, config) for clip_no in (0, 1, 2) for config in ("p1", "p2", "p3")
    ]
    assert sorted(sum(count.values()) for count in counts) == [0, 3, 3, 3]
    assert len({row.run_id for row in rows if row.preview_config_id == "p1"}) == 1


def test_what_a_config_id_stands_for_is_written_once_by_jobs_that_start_together(lake: Lake) -> None:
    config = ConfigIdentity("previews", '{"format":1,"kind":"previews","settings":{"quality":51}}')
    run: Callable[[int], None] = lambda _: record_configs(lake, [config])  # noqa: E731
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))
    record_configs(lake, [config])
    (row,) = lake.read(CONFIGS).collect()
    assert (row.config_id, row.kind, row.config_json) == (config.config_id, "previews", config.canonical)


def test_of_several_configs_those_that_are_missing_are_written_down(lake: Lake) -> None:
    first, second = (ConfigIdentity("previews", f'{{"quality":{quality}}}') for quality in (51, 52))
    for configs in ([first], [first, second, second], [second, first], []):
        record_configs(lake, configs)
    rows = lake.read(CONFIGS).collect()
    assert sorted(row.config_id for row in rows) == sorted([first.config_id, second.config_id])
    assert lake.version(CONFIGS) == 2
