"""Rows for tables, made by hand: only what a test is about has to be said."""

from datetime import UTC, datetime
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from jobs.lake import Lake
from schemas.table import Table

COMMIT_FILLS = ("run_id", "commit_seq", "created_at")

_FILLERS: dict[str, Any] = {
    "string": "x",
    "int": 1,
    "bigint": 0,
    "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
}


def complete(schema: StructType, given: dict[str, Any]) -> tuple[Any, ...]:
    """A row with fillers in required columns and null in the others, but for what is given."""
    unknown = set(given) - set(schema.fieldNames())
    assert not unknown, f"no such columns: {unknown}"
    fillers = {f.name: _FILLERS[f.dataType.simpleString()] for f in schema if not f.nullable} | given
    return tuple(fillers.get(name) for name in schema.fieldNames())


def frame_of(spark: SparkSession, table: Table, *rows: dict[str, Any], stamped: bool = True) -> DataFrame:
    """Rows of a table; without `stamped` those that a commit still stamps."""
    kept = [field for field in table.schema if stamped or field.name not in COMMIT_FILLS]
    schema = StructType(kept)
    return spark.createDataFrame([complete(schema, row) for row in rows], schema)


def fill(lake: Lake, table: Table, *rows: dict[str, Any]) -> None:
    """Appends rows to a table of a lake, in one commit."""
    lake.append(table, frame_of(lake.spark, table, *rows).coalesce(1))
