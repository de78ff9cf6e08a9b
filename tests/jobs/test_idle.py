"""The idle share: what users size their clusters by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from jobs.idle import idle_share
from jobs.stage import count_rows
from udfs.engine.requests import EngineReading


def readings(*points: tuple[float, float], engine: str = "a", start_s: float = 0.0) -> list[EngineReading]:
    return [EngineReading(engine, start_s + at_s, busy_s) for at_s, busy_s in points]


def test_an_engine_that_works_three_quarters_of_the_time_is_idle_for_one() -> None:
    assert idle_share(readings((0, 10), (40, 40), (100, 85))) == pytest.approx(0.25, abs=0.01)
    assert idle_share(readings((0, 0), (50, 50), (80, 80))) == 0
    assert idle_share(readings((0, 3), (50, 3), (80, 3))) == 1


def test_the_start_and_the_end_of_a_run_do_not_count() -> None:
    work = [(5, 0), (95, 90)]
    assert idle_share(readings((0, 0), *work, (100, 90))) == pytest.approx(0)
    assert idle_share(readings((0, 0), *work, (100, 95))) == pytest.approx(0)


def test_what_lies_between_two_readings_is_even() -> None:
    assert idle_share(readings((0, 0), (10, 10), (100, 10))) == pytest.approx(1 - 5 / 90)


def test_engines_count_by_their_time_and_each_by_its_own_clock() -> None:
    short = readings((0, 0), (10, 10), engine="short", start_s=5000)
    long = readings((0, 100), (30, 100), engine="long", start_s=7)
    mixed = [long[1], short[0], long[0], short[1]]
    assert idle_share(mixed) == pytest.approx(30 / 40)


def test_an_engine_that_was_started_again_is_another_one() -> None:
    first = readings((0, 0), (100, 100), engine="first")
    second = readings((160, 0), (260, 50), engine="second")
    assert idle_share(first + second) == pytest.approx(0.25)


def test_nothing_is_said_where_nothing_was_measured() -> None:
    assert idle_share([]) is None
    assert idle_share(readings((5, 5))) is None
    assert idle_share(readings((5, 5), (5, 5))) is None
    assert idle_share(readings((0, 0), (10, 5)) + readings((3, 3), engine="b")) == pytest.approx(0.5)


def test_a_step_that_had_begun_before_makes_no_negative_share() -> None:
    assert idle_share(readings((0, 0), (10, 30))) == 0


points = st.tuples(st.integers(0, 10_000), st.floats(0, 1))
curves = st.lists(points, min_size=2, max_size=20, unique_by=lambda point: point[0]).map(sorted)


@given(curves=st.dictionaries(st.sampled_from("abc"), curves, min_size=1), seed=st.randoms())
def test_the_share_is_one_whatever_the_order_of_readings(
    curves: dict[str, list[tuple[int, float]]], seed: object
) -> None:
    found = []
    for engine, points in curves.items():
        busy_s = 0.0
        for number, (at_s, load) in enumerate(points):
            busy_s += load * (at_s - points[max(0, number - 1)][0])
            found.append(EngineReading(engine, at_s, busy_s))
    share = idle_share(found)
    seed.shuffle(found)  # type: ignore[attr-defined]
    assert share is not None
    assert 0 <= share <= 1
    assert idle_share(found) == pytest.approx(share)


def test_the_driver_gets_every_row_counted_and_one_reading_for_each_engine_and_second(
    spark: SparkSession,
) -> None:
    answers = [("a", k / 10, k / 20) for k in range(95)] + [("b", 3.5, 1.0), None, None]
    rows = spark.createDataFrame(
        [({"engine": engine},) for engine in answers],
        "answer struct<engine: struct<engine_id: string, at_s: double, busy_s: double>>",
    )
    num_rows, found = count_rows(rows, "answer.engine")
    assert num_rows == len(answers)
    ends = [(9 + 10 * second) / 10 for second in range(9)] + [9.4]
    expected = [EngineReading("a", at_s, pytest.approx(at_s / 2)) for at_s in ends]
    expected.append(EngineReading("b", 3.5, 1.0))
    assert sorted(found, key=lambda one: (one.engine_id, one.at_s)) == expected
    assert count_rows(rows, None) == (len(answers), [])
    assert count_rows(rows.limit(0), "answer.engine") == (0, [])
