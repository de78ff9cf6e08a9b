"""What users point at becomes clips: each file once, whatever its name, and again when it changes."""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyspark.sql import Row, SparkSession

from conf.errors import SchemaError, SettingsError
from conf.settings import Settings
from jobs.ingest import add_clips, add_rows, listed, rows_of_table
from jobs.lake import Lake
from jobs.stage import JobContext
from schemas.clips import CLIPS
from schemas.windows import WINDOWS
from tests.jobs.rows import fill
from udfs.identity import clip_uuid
from udfs.storage import file_uri, local_path

MakeContext = Callable[..., JobContext]
NAMES = ["a.mp4", "b #2 100%.mp4", "empty.mp4", "sub folder/Übung 😀.mkv", "text.txt"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of files with odd names; one is empty, one hidden, one a link to nowhere."""
    folder = tmp_path / "files"
    (folder / "sub folder").mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text("" if name == "empty.mp4" else f"bytes of {name}")
    (folder / ".hidden.mp4").write_text("not a clip")
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    return folder


def clips(lake: Lake) -> dict[str, Row]:
    """The rows of `clips` by the name of their file."""
    rows = lake.read(CLIPS).collect()
    assert len({row.clip_id for row in rows}) == len({row.clip_no for row in rows}) == len(rows)
    return {(local_path(row.source_video) or "").rpartition("/")[2]: row for row in rows}


def add(context: JobContext) -> Counter[str]:
    """Ingests; returns the counts of this run alone."""
    add_clips(context, listed(context.settings))
    return context.counts


@pytest.mark.parametrize("mode", ["reference", "value"])
def test_each_file_is_a_clip_once_and_a_changed_one_is_new_work_alone(
    lake: Lake, files: Path, make_context: MakeContext, mode: str
) -> None:
    def ingest() -> Counter[str]:
        # The same files by three names: the folder, a file in it, and that file as a URI.
        places = (str(files), str(files / "a.mp4"), file_uri(files / "a.mp4"))
        return add(make_context(input_path=places, ingest_mode=mode))

    assert ingest() == {"clips.new": 6}
    first = clips(lake)
    assert sorted(first) == sorted([*(Path(name).name for name in NAMES), "gone.mp4"])
    in_order = sorted(first.values(), key=lambda row: row.source_video)
    assert [row.clip_no for row in in_order] == list(range(6))
    for name in NAMES:
        row, path = first[Path(name).name], files / name
        assert row.source_video == file_uri(path)
        assert row.clip_id == clip_uuid(file_uri(path))
        assert row.content_id.startswith(f"{path.stat().st_size}-")
        stored = (row.clip_uri, row.clip_bytes)
        assert stored == ((file_uri(path), None) if mode == "reference" else (None, path.read_bytes()))
    # What cannot be read is kept by reference, so that a later stage says what is wrong with it.
    assert first["gone.mp4"].clip_uri == file_uri(files / "gone.mp4")

    version = lake.version(CLIPS)
    assert ingest() == {"clips.unchanged": 6}
    assert lake.version(CLIPS) == version

    (files / "a.mp4").write_text("other bytes")
    (files / "new.mp4").write_text("a new clip")
    (files / "text.txt").unlink()
    assert ingest() == {"clips.new": 1, "clips.changed": 1, "clips.unchanged": 4}
    second = clips(lake)
    assert {second.pop("a.mp4").clip_no, second.pop("new.mp4").clip_no} == {6, 7}
    assert second == {name: row for name, row in first.items() if name != "a.mp4"}


def test_the_time_of_a_file_alone_does_not_make_it_new_work(
    lake: Lake, files: Path, make_context: MakeContext
) -> None:
    add(make_context(input_path=(str(files / "*.mp4"),)))
    os.utime(files / "a.mp4", (1, 1))
    assert add(make_context(input_path=(str(files / "a.mp4"),))) == {"clips.unchanged": 1}


def test_a_number_that_was_used_is_never_given_to_other_content(
    lake: Lake, files: Path, make_context: MakeContext
) -> None:
    """Rows of other tables hang on the number, also those of clips that are gone."""
    clip = files / "a.mp4"
    context = make_context(input_path=(str(clip), str(files / "text.txt")))
    add(context)
    numbers = [clips(lake)["a.mp4"].clip_no]
    for text in ("other bytes", "bytes of a.mp4"):
        clip.write_text(text)
        add(context)
        numbers.append(clips(lake)["a.mp4"].clip_no)
    assert numbers == sorted(set(numbers))
    fill(lake, WINDOWS, {"clip_no": numbers[-1]})
    lake.delta(CLIPS).delete("true")
    version = lake.version(CLIPS)
    add(context)
    assert min(row.clip_no for row in clips(lake).values()) > numbers[-1]
    assert lake.version(CLIPS) == version + 1


def test_two_ingests_at_once_give_each_clip_once(lake: Lake, files: Path, make_context: MakeContext) -> None:
    def ingest_twice(*run_ids: str) -> list[Counter[str]]:
        contexts = [make_context(run_id, input_path=(str(files),)) for run_id in run_ids]
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(add, contexts))

    both = sum(ingest_twice("a", "b"), Counter())
    assert both == {"clips.new": 6, "clips.unchanged": 6}
    assert len(clips(lake)) == 6
    (files / "text.txt").write_text("the last one in order has changed")
    both = sum(ingest_twice("c", "d"), Counter())
    assert len(clips(lake)) == 6
    assert both["clips.new"] + both["clips.changed"] == 1
    assert clips(lake)["text.txt"].content_id.startswith("33-")


def test_a_clip_whose_content_the_owner_of_the_table_left_out_is_not_added_twice(
    lake: Lake, files: Path, make_context: MakeContext
) -> None:
    fill(lake, CLIPS, {"clip_id": clip_uuid(file_uri(files / "a.mp4")), "clip_no": 4})
    assert add(make_context(input_path=(str(files / "a.mp4"),))) == {"clips.changed": 1}
    assert clips(lake)["a.mp4"].clip_no == 5


def test_a_pipe_among_the_files_costs_its_own_row_and_not_the_job(
    lake: Lake, files: Path, make_context: MakeContext
) -> None:
    os.mkfifo(files / "pipe.mp4")
    assert add(make_context(input_path=(str(files / "pipe.mp4"),))) == {"clips.new": 1}
    assert clips(lake)["pipe.mp4"].clip_uri == file_uri(files / "pipe.mp4")


@pytest.mark.parametrize("place", ["no/such/folder", "*.nothing", "s3:///", "file:///no/such.mp4"])
def test_a_place_without_clips_is_refused_by_name(
    make_settings: Callable[..., Settings], lake: Lake, files: Path, place: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        listed(make_settings(input_path=(str(files), place)))
    assert place in str(caught.value)


def test_ingest_without_a_place_says_how_to_name_one(make_context: MakeContext) -> None:
    with pytest.raises(SettingsError, match="--input-path"):
        listed(make_context().settings)


def test_a_table_of_clips_is_added_once_and_again_when_its_bytes_change(
    spark: SparkSession, lake: Lake, make_context: MakeContext
) -> None:
    def add_table(*rows: tuple[str | None, bytes]) -> Counter[str]:
        frame = spark.createDataFrame(list(rows), "clip_id string, clip_bytes binary")
        context = make_context()
        add_rows(context, rows_of_table(frame))
        return context.counts

    assert add_table(("a", b"one"), ("b", b"two")) == {"clips.new": 2}
    assert add_table(("a", b"one"), ("b", b"other")) == {"clips.changed": 1, "clips.unchanged": 1}
    held = {row.clip_id: row for row in lake.read(CLIPS).collect()}
    assert bytes(held["b"].clip_bytes) == b"other"
    assert held["b"].source_video == "b"
    for rows in ([("c", b"1"), ("c", b"2")], [(None, b"1")]):
        with pytest.raises(SchemaError, match="clip_id must be there, and once"):
            add_table(*rows)
    assert lake.read(CLIPS).count() == 2


def test_a_table_of_clips_by_reference_keeps_what_it_says_of_them(spark: SparkSession) -> None:
    columns = "clip_id string, clip_uri string, content_id string, span_start_s int"
    frame = spark.createDataFrame([("a", "s3://b/a.mp4", "etag", 3), ("b", "s3://b/b.mp4", None, 4)], columns)
    rows = {row.clip_id: row for row in rows_of_table(frame).collect()}
    assert (rows["a"].content_id, rows["a"].span_start_s) == ("etag", 3.0)
    assert (rows["b"].content_id, rows["b"].source_video) == ("s3://b/b.mp4", "s3://b/b.mp4")
    assert rows["a"].clip_bytes is None
    with pytest.raises(SchemaError, match="clip_bytes, clip_uri"):
        rows_of_table(frame.select("clip_id"))
