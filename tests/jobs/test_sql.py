"""Results that people and programs can read, whatever a model wrote into them."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import SettingsError
from jobs.lake import Lake
from jobs.sql import query, write_result
from schemas.previews import PREVIEWS
from tests.jobs.conftest import FilledLake

HOSTILE = 'line one\nline two, "quoted"; \x1b[31mred\x1b[0m [bold]markup[/bold] \x9b \x00 ü 😀'


def shown(filled: FilledLake, statement: str, *, form: str, width: int | None = None) -> str:
    out = io.StringIO()
    write_result(query(filled.lake.spark, filled.lake, statement), out, form=form, width=width)
    return out.getvalue()


def literal(text: str) -> str:
    return "decode(unbase64('" + base64.b64encode(text.encode()).decode() + "'), 'UTF-8')"


def json_rows(filled: FilledLake, statement: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shown(filled, statement, form="json").splitlines()]


def test_a_table_for_people_holds_every_row_and_heading(filled: FilledLake) -> None:
    text = shown(
        filled, "SELECT window_status, count(*) AS n FROM windows GROUP BY 1 ORDER BY 1", form="table"
    )
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert cells == [["error", "5"], ["partial", "2"], ["skipped", "1"], ["success", "5"]]
    assert "window_status" in text


def test_the_view_is_there_for_queries(filled: FilledLake) -> None:
    rows = json_rows(
        filled,
        "SELECT window_index, preview_status, caption FROM window_captions WHERE clip_no = 7 ORDER BY 1",
    )
    assert rows == [
        {"window_index": index, "preview_status": "success", "caption": None} for index in range(3)
    ]


def test_a_models_text_cannot_take_over_the_terminal(filled: FilledLake) -> None:
    text = shown(filled, f"SELECT {literal(HOSTILE)} AS caption", form="table", width=200)
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "\x00" not in text
    assert "[bold]markup[/bold]" in text
    assert "ü 😀" in text
    assert "line two" in text


def test_a_heading_cannot_either(filled: FilledLake) -> None:
    text = shown(filled, "SELECT 1 AS `[red]a[/red]`", form="table")
    assert "[red]a[/red]" in text


def test_text_comes_out_of_csv_and_json_as_it_was(filled: FilledLake) -> None:
    statement = f"SELECT {literal(HOSTILE)} AS caption, '' AS empty, null AS nothing"
    (row,) = json_rows(filled, statement)
    assert row == {"caption": HOSTILE, "empty": "", "nothing": None}
    text = shown(filled, statement, form="csv")
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["caption", "empty", "nothing"],
        [HOSTILE, "", ""],
    ]


def test_previews_come_out_whole_where_programs_read_and_as_a_size_where_people_do(
    filled: FilledLake,
) -> None:
    row = filled.lake.read(PREVIEWS).where("webp IS NOT NULL").orderBy("window_id").first()
    assert row is not None
    statement = f"SELECT webp FROM previews WHERE window_id = '{row.window_id}'"
    webp = bytes(row.webp)
    assert base64.b64decode(json_rows(filled, statement)[0]["webp"]) == webp
    assert base64.b64decode(shown(filled, statement, form="csv").splitlines()[1]) == webp
    assert f"{len(webp)} bytes" in shown(filled, statement, form="table")


TYPES = (
    "SELECT 1.50 AS price, CAST(2 AS DECIMAL(10,2)) AS whole, CAST('NaN' AS DOUBLE) AS nan, "
    "DATE'2026-01-02' AS day, TIMESTAMP'2026-01-02 03:04:05' AS at, array(1, 2) AS list, "
    "map('qwen', 'text') AS caption, struct(1 AS a, array('x') AS b) AS pair, "
    "INTERVAL '1 02:00:00' DAY TO SECOND AS wait, true AS yes, CAST(null AS BINARY) AS blob"
)


def test_every_type_that_a_query_can_give_is_written(filled: FilledLake) -> None:
    assert json_rows(filled, TYPES) == [
        {
            "price": 1.5,
            "whole": 2,
            "nan": "nan",
            "day": "2026-01-02",
            "at": "2026-01-02T03:04:05",
            "list": [1, 2],
            "caption": {"qwen": "text"},
            "pair": {"a": 1, "b": ["x"]},
            "wait": "1 day, 2:00:00",
            "yes": True,
            "blob": None,
        }
    ]
    assert '"{""qwen"": ""text""}"' in shown(filled, TYPES, form="csv")
    assert '{"qwen": "text"}' in shown(filled, TYPES, form="table", width=300)


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_a_result_without_rows_is_no_error(filled: FilledLake, form: str) -> None:
    text = shown(filled, "SELECT clip_id FROM clips WHERE false", form=form)
    assert ("clip_id" in text) == (form != "json")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("SELEC 1", "cannot be run"),
        ("SELECT no_such_column FROM windows", "no_such_column"),
        ("SELECT * FROM no_such_table", "no_such_table"),
        ("SELECT 1 / (clip_no - clip_no) FROM clips", "the statement failed"),
    ],
)
def test_a_statement_that_cannot_be_run_is_refused_in_a_line(
    filled: FilledLake, statement: str, words: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        shown(filled, statement, form="json")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lake_that_is_not_there_is_named(filled: FilledLake, tmp_path: Path) -> None:
    lake = Lake(filled.lake.spark, str(tmp_path / "no lake"))
    with pytest.raises(SettingsError, match=r"no table clips in the lake .*no lake"):
        query(lake.spark, lake, "SELECT 1")
    with pytest.raises(SettingsError, match="--output-path"):
        Lake(filled.lake.spark, None)
