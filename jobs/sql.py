"""Job `sql`: a query over a lake's tables and view, shown as a table or as CSV or JSON."""

import base64
import json
import math
import re
import sys
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TextIO

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Row, SparkSession
from rich.console import Console
from rich.table import Table as TextTable
from rich.text import Text

from conf.errors import SettingsError
from jobs.lake import Lake, first_line
from jobs.views import register

FORMATS = ("table", "csv", "json")


def query(spark: SparkSession, lake: Lake, statement: str) -> DataFrame:
    """The result of a query over the tables and `window_captions`.

    Raises:
        SettingsError: the lake lacks a table, or the statement cannot be read.
    """
    register(spark, lake)
    try:
        return spark.sql(statement)
    except PySparkException as error:
        raise SettingsError(f"the statement cannot be run: {first_line(error)}") from error


def write_result(frame: DataFrame, out: TextIO, *, form: str, width: int | None = None) -> None:
    """Writes a result.

    Args:
        frame: the result; rows are fetched one partition at a time.
        out: where to.
        form: `table`, `csv` (with a header) or `json` (one object a line).
        width: columns of the terminal; None: as wide as the terminal is, or 160 where there is none.

    Raises:
        SettingsError: the statement fails on a row, e.g. divides by zero.
    """
    if form == "table":
        _write_table(frame, out, width)
    elif form == "csv":
        _write_csv(frame, out)
    else:
        for row in _rows(frame):
            out.write(json.dumps(_plain(row), ensure_ascii=False) + "\n")


def _rows(frame: DataFrame) -> Iterator[Row]:
    try:
        yield from frame.toLocalIterator()
    except Exception as error:
        # Named and not imported: a Spark Connect client need not have py4j.
        if not isinstance(error, PySparkException) and type(error).__name__ != "Py4JJavaError":
            raise
        causes = re.findall(r"Caused by: [\w.$]+: (.+)", str(error))
        raise SettingsError(f"the statement failed: {causes[-1] if causes else first_line(error)}") from error


def _write_table(frame: DataFrame, out: TextIO, width: int | None) -> None:
    shown = TextTable(show_lines=True)
    for name in frame.columns:
        shown.add_column(Text(name), overflow="fold")
    for row in _rows(frame):
        shown.add_row(*[Text(_cell(value)) for value in row])
    console = Console(file=out, width=width or (None if out.isatty() else 160), highlight=False)
    console.print(shown)


def _write_csv(frame: DataFrame, out: TextIO) -> None:
    import csv

    writer = csv.writer(out)
    writer.writerow(frame.columns)
    for row in _rows(frame):
        writer.writerow(["" if value is None else _flat(value) for value in row])


def _cell(value: Any) -> str:
    """A value for a person's eyes: blobs as their size, control characters taken out."""
    if value is None:
        return ""
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else _flat(value)
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _flat(value: Any) -> str:
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """A value in JSON's types; blobs as base64."""
    if isinstance(value, Row):
        return {name: _plain(item) for name, item in value.asDict().items()}
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


def main(argv: list[str] | None = None) -> int:
    """The command `captionlake sql`; returns the exit code."""
    from jobs.cli import main as cli

    return cli(["sql", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
