"""A lake that is not as it must be is refused before any work; one that a user made is taken as it is."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from conf.errors import SchemaError, SettingsError
from conf.settings import Settings
from jobs import ingest, windows
from jobs.checks import check_clips
from jobs.lake import Lake
from schemas.clips import CLIPS
from schemas.runs import RUNS
from schemas.tables import TABLES
from schemas.windows import WINDOWS
from tests.jobs.conftest import FilledLake

COLUMNS = (
    "clip_id string, clip_no long, source_video string, span_start_s double, span_end_s double, "
    "clip_bytes binary, clip_uri string, content_id string"
)


def users_lake(
    spark: SparkSession, folder: Path, rows: list[tuple[object, ...]], columns: str = COLUMNS
) -> Lake:
    """A lake whose table `clips` a user has made."""
    frame = spark.createDataFrame(rows, columns).coalesce(1)
    frame.write.format("delta").save(str(folder / "clips"))
    return Lake(spark, str(folder))


def clip(clip_id: str | None, clip_no: int | None) -> tuple[object, ...]:
    return (clip_id, clip_no, None, None, None, None, "file:///no/such.mp4", None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([clip("a", 0), clip("b", 1), clip("a", 2)], "clip_id a stands in several rows"),
        ([clip("a", 0), clip("b", 0)], "clip_no 0 stands in several rows"),
        ([clip("a", 0), clip(None, 1)], "null in 1 rows"),
        ([clip("a", 0), clip("b", None), clip("c", None)], "null in 2 rows"),
    ],
    ids=["same id", "same number", "no id", "no number"],
)
def test_clips_that_cannot_be_told_apart_are_refused_by_name(
    spark: SparkSession, tmp_path: Path, rows: list[tuple[object, ...]], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        check_clips(users_lake(spark, tmp_path, rows))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (COLUMNS.replace("content_id string", "content string"), "content_id must be string, it is missing"),
        (COLUMNS.replace("clip_no long", "clip_no int"), "clip_no must be bigint, it is int"),
    ],
)
def test_a_table_of_other_columns_is_refused_by_name(
    spark: SparkSession, tmp_path: Path, columns: str, message: str
) -> None:
    with pytest.raises(SchemaError, match=f"table clips: column {message}"):
        users_lake(spark, tmp_path, [clip("a", 0)], columns).read(CLIPS)


def test_a_users_own_table_of_clips_is_worked_on_and_its_mistakes_are_written_down(
    spark: SparkSession, filled: FilledLake, tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    """More columns than ours, no content_id, bytes and URIs side by side, and one clip with neither."""
    video = filled.clips / "one window.mp4"
    rows = [
        ("by value", 10, None, 1.5, 2.3, video.read_bytes(), None, None, "of the user"),
        ("by path", 20, None, None, None, None, str(video), None, "of the user"),
        ("neither", 30, None, None, None, None, None, None, "of the user"),
    ]
    lake = users_lake(spark, tmp_path / "lake", rows, COLUMNS + ", note string")
    settings = make_settings()
    assert windows.run(spark, settings).counts == {"windows.success": 2, "windows.error": 1}
    found = {row.clip_id: row for row in lake.read(WINDOWS).collect()}
    assert (found["by value"].clip_no, found["by value"].end_frame) == (10, 23)
    assert found["by path"].frame_indices == found["by value"].frame_indices
    assert "neither clip_bytes nor clip_uri" in found["neither"].window_error

    spark.createDataFrame([rows[0]], COLUMNS + ", note string").write.format("delta").mode("append").save(
        lake.path_of(CLIPS)
    )
    with pytest.raises(SchemaError):
        windows.run(spark, settings)
    (run,) = lake.read(RUNS).where("run_status = 'error'").collect()
    assert run.run_error.startswith("SchemaError: table clips: clip_id by value stands in several rows")
    assert run.status_counts == {}


def test_a_place_that_cannot_be_written_is_named(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SettingsError, match=r"cannot create table clips in the lake .*/file/lake"):
        Lake(spark, str(tmp_path / "file" / "lake")).create()


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("main.captions", "`main`.`captions`.`clips`"),
        ("lake", f"delta.`{Path.cwd()}/lake/clips`"),
        ("./main.captions", f"delta.`{Path.cwd()}/main.captions/clips`"),
        ("/lakes/main.captions/", "delta.`/lakes/main.captions/clips`"),
        ("s3://bucket/a.b", "delta.`s3://bucket/a.b/clips`"),
        ("hdfs:///data/lake", "delta.`hdfs:/data/lake/clips`"),
    ],
)
def test_a_schema_is_told_from_a_folder(spark: SparkSession, location: str, name: str) -> None:
    lake = Lake(spark, location)
    assert lake.in_catalog == (not name.startswith("delta."))
    assert lake.name_of(CLIPS) == name


def test_a_lake_is_made_at_a_uri_without_a_host(spark: SparkSession, tmp_path: Path) -> None:
    """As in docs/clusters.md: `hdfs:///data/lake`."""
    Lake(spark, f"file://{tmp_path}/lake").create()
    assert Lake(spark, str(tmp_path / "lake")).exists(CLIPS)


@pytest.fixture
def schema(spark: SparkSession, tmp_path: Path) -> Iterator[str]:
    """A schema of the session's catalog, dropped afterwards."""
    spark.sql(f"CREATE SCHEMA captions_test LOCATION '{tmp_path / 'schema'}'")
    yield "spark_catalog.captions_test"
    spark.sql("DROP SCHEMA captions_test CASCADE")


def test_a_lake_in_a_catalog_has_its_tables_and_its_view_under_their_names(
    spark: SparkSession, schema: str, filled: FilledLake, make_settings: Callable[..., Settings]
) -> None:
    clips = (str(filled.clips / "one window.mp4"), str(filled.clips / "text.mp4"))
    settings = make_settings(input_path=clips, output_path=schema)
    ingest.run(spark, settings)
    windows.run(spark, settings)
    shown = spark.sql(f"SELECT clip_no, window_status FROM {schema}.window_captions ORDER BY clip_no")
    assert [tuple(row) for row in shown.collect()] == [(0, "success"), (1, "error")]
    tables = {row.tableName for row in spark.sql(f"SHOW TABLES IN {schema}").collect()}
    assert tables == {table.name for table in TABLES} | {"window_captions"}
    assert windows.run(spark, settings).counts == {}
