"""The tables as they stand on disk: what other programs see of the contract."""

import json
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.lake import Lake
from schemas.table import Table
from schemas.tables import TABLES

each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A new lake, in a folder whose name needs care."""
    made = Lake(spark, str(tmp_path_factory.mktemp("lake ü #1 100%") / "its tables"))
    made.create()
    return made


@each_table
def test_a_new_table_shows_its_columns_types_and_comments_to_sql(
    spark: SparkSession, lake: Lake, table: Table
) -> None:
    described = spark.sql(f"DESCRIBE {lake.name_of(table)}").collect()
    assert [(row.col_name, row.data_type, row.comment) for row in described] == [
        (field.name, field.dataType.simpleString(), field.metadata["comment"]) for field in table.schema
    ]


@each_table
def test_a_new_table_has_its_properties(spark: SparkSession, lake: Lake, table: Table) -> None:
    rows = spark.sql(f"SHOW TBLPROPERTIES {lake.name_of(table)}").collect()
    shown = {row.key: row.value for row in rows}
    assert table.table_properties.items() <= shown.items()
    # A higher protocol would shut readers out.
    assert shown["delta.minReaderVersion"] == "1"


@each_table
def test_columns_that_must_be_filled_are_so_on_disk(lake: Lake, table: Table) -> None:
    log = (Path(lake.path_of(table)) / "_delta_log" / f"{0:020}.json").read_text().splitlines()
    (metadata,) = [json.loads(line)["metaData"] for line in log if "metaData" in line]
    fields = json.loads(metadata["schemaString"])["fields"]
    assert [(field["name"], field["nullable"]) for field in fields] == [
        (field.name, field.nullable) for field in table.schema
    ]


def test_creating_a_lake_again_leaves_it_as_it_is(lake: Lake) -> None:
    lake.create()
    assert {lake.version(table) for table in TABLES} == {0}
