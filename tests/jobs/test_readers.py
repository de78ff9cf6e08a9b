"""The tables belong to the user: programs that are not Spark read the same rows."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable

from jobs import media
from schemas.captions import CAPTIONS
from schemas.enhancements import ENHANCEMENTS
from schemas.previews import PREVIEWS
from schemas.table import Table
from schemas.tables import TABLES
from schemas.windows import WINDOWS
from tests.jobs.conftest import FilledLake, run_alone
from tests.jobs.rows import fill

each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)

ARROW_TYPES = {
    "string": "string",
    "int": "int32",
    "bigint": "int64",
    "double": "double",
    "binary": "binary",
    "timestamp": "timestamp[us, tz=UTC]",
    "array<int>": "list<int32>",
    "array<double>": "list<double>",
    "map<string,string>": "map<string, string>",
    "map<string,bigint>": "map<string, int64>",
}


@pytest.fixture(scope="module")
def lake(filled: FilledLake, tmp_path_factory: pytest.TempPathFactory) -> FilledLake:
    """The filled lake with mp4s of its windows, and with captions, as no model has written any."""
    copy = filled.copy(tmp_path_factory.mktemp("read by others"), keep_window_mp4=True)
    run_alone(copy.lake, copy.settings, media.STAGE)
    windows = copy.lake.read(WINDOWS).select("window_id", "prep_config_id", "clip_id", "clip_no").collect()
    keys = [row.asDict() for row in windows]
    texts = ["ein Würfel 😀", "", None, 'a "quoted" line\nand another']
    captions = [
        key | {"caption": texts[i % 4], "prompt_tokens": 7 * i, "latency_s": i / 3}
        for i, key in enumerate(keys)
    ]
    fill(copy.lake, CAPTIONS, *captions)
    fill(copy.lake, ENHANCEMENTS, *[key | {"enhanced_caption": texts[i % 4]} for i, key in enumerate(keys)])
    return copy


def plain(value: Any) -> Any:
    """A value as all three readers would say it."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.astimezone().astimezone(UTC)
    if isinstance(value, dict):
        return sorted(value.items())
    if isinstance(value, list):
        return sorted(map(tuple, value)) if value and isinstance(value[0], tuple) else value
    return value


def rows_of(rows: Iterable[Iterable[Any]]) -> list[tuple[Any, ...]]:
    return sorted((tuple(plain(value) for value in row) for row in rows), key=repr)


@each_table
def test_other_readers_see_the_same_columns_and_rows_as_spark(lake: FilledLake, table: Table) -> None:
    by_spark = rows_of(lake.lake.read(table).collect())
    assert by_spark
    arrow = DeltaTable(lake.lake.path_of(table)).to_pyarrow_table()
    assert arrow.schema.names == table.schema.fieldNames()
    shown = [str(kind).replace("element: ", "").replace("item: ", "") for kind in arrow.schema.types]
    wanted = [ARROW_TYPES[field.dataType.simpleString()] for field in table.schema]
    assert [kind.replace(" not null", "").split(" (")[0] for kind in shown] == wanted
    assert rows_of(zip(*[column.to_pylist() for column in arrow.columns], strict=True)) == by_spark
    duck = duckdb.from_arrow(arrow)
    assert duck.columns == table.schema.fieldNames()
    assert rows_of(duck.fetchall()) == by_spark


def test_a_preview_read_by_another_program_is_the_same_picture_byte_for_byte(lake: FilledLake) -> None:
    arrow = DeltaTable(lake.lake.path_of(PREVIEWS)).to_pyarrow_table()
    shown = duckdb.from_arrow(arrow).filter("webp IS NOT NULL")
    found = shown.select("window_id", "webp").fetchall()
    held = {row.window_id: bytes(row.webp) for row in lake.lake.read(PREVIEWS).collect() if row.webp}
    assert dict(found) == held
    assert len(held) == 7
    assert all(webp.startswith(b"RIFF") for webp in held.values())


def test_the_files_of_another_config_are_skipped_by_other_readers_too(lake: FilledLake) -> None:
    """Statistics of the keys stand in the log, those of blobs do not."""
    actions = DeltaTable(lake.lake.path_of(PREVIEWS)).get_add_actions(flatten=True)
    names = set(actions.schema.names)
    assert {f"min.{name}" for name in PREVIEWS.stats} <= names
    assert not {"min.webp", "min.preview_error"} & names


def test_a_lake_moved_to_another_folder_is_still_whole(lake: FilledLake, tmp_path: Path) -> None:
    moved = lake.copy(tmp_path)
    assert moved.lake.read(CAPTIONS).count() == lake.lake.read(CAPTIONS).count()
