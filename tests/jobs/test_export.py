"""A lake as NeMo Curator's files, and such files as a lake."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from pyspark.sql import SparkSession

from conf.errors import SettingsError
from conf.settings import Settings
from jobs import export, ingest
from jobs.from_curator import clips_of_curator
from jobs.lake import Lake
from jobs.sql import query
from jobs.stage import JobContext
from schemas.clips import CLIPS
from tests.jobs.conftest import FilledLake

WITHOUT_WINDOW = {"dangling.mp4", "empty.mp4", "playlist.mp4", "sound only.m4a", "text.mp4", "too short.mp4"}
UNREADABLE = {"dangling.mp4", "empty.mp4"}


@pytest.fixture(scope="module")
def exported(filled: FilledLake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the filled lake."""
    folder = tmp_path_factory.mktemp("files ü")
    settings = filled.settings
    asked = settings.export.model_copy(update={"path": str(folder), "clips": True})
    report = export.run(filled.lake.spark, settings.model_copy(update={"export": asked}))
    assert report.counts == {"metas": 10, "previews": 7, "clips": 8, "unreadable clips not": 2}
    assert "10 metas, 7 previews" in report.render()
    return folder


def names(filled: FilledLake) -> dict[str, str]:
    rows = filled.lake.read(CLIPS).selectExpr(
        "clip_id", "url_decode(element_at(split(source_video, '/'), -1)) AS name"
    )
    return {row.clip_id: row["name"] for row in rows.collect()}


def test_every_clip_has_its_metadata_and_every_preview_its_file(
    spark: SparkSession, filled: FilledLake, exported: Path
) -> None:
    by_id = names(filled)
    metas = {path.stem: json.loads(path.read_bytes()) for path in (exported / "metas/v0").iterdir()}
    assert metas.keys() == by_id.keys()
    for clip_id, meta in metas.items():
        assert meta["span_uuid"] == clip_id
        assert meta["valid"] == (by_id[clip_id] not in WITHOUT_WINDOW)
        assert meta["clip_location"] == f"{exported}/clips/{clip_id}.mp4"
        assert meta["num_bytes"] == (filled.clips / by_id[clip_id]).lstat().st_size
    view = query(spark, filled.lake, "SELECT * FROM window_captions WHERE window_index IS NOT NULL")
    spans = sorted((row.clip_id, row.start_frame, row.end_frame) for row in view.collect())
    told = [(id_, w["start_frame"], w["end_frame"]) for id_, meta in metas.items() for w in meta["windows"]]
    assert sorted(told) == spans
    webps = {str(path.relative_to(exported / "previews")) for path in exported.rglob("*.webp")}
    assert webps == {f"{clip_id}/{start}_{end}.webp" for clip_id, start, end in spans}
    with Image.open(next(exported.rglob("*.webp"))) as picture:
        assert picture.format == "WEBP"


def test_clips_are_copied_byte_for_byte_and_those_that_cannot_be_read_are_left_out(
    filled: FilledLake, exported: Path
) -> None:
    by_id = names(filled)
    copied = {by_id[path.stem]: path.read_bytes() for path in (exported / "clips").iterdir()}
    assert copied.keys() == set(by_id.values()) - UNREADABLE
    assert all(data == (filled.clips / name).read_bytes() for name, data in copied.items())


@pytest.mark.parametrize("mode", ["reference", "value"])
def test_exported_files_come_back_with_their_ids(
    spark: SparkSession,
    filled: FilledLake,
    exported: Path,
    make_settings: Callable[..., Settings],
    mode: str,
) -> None:
    settings = make_settings(from_curator=str(exported), ingest_mode=mode)
    rows = {row.clip_id: row for row in clips_of_curator(spark, settings).collect()}
    before = {row.clip_id: row for row in filled.lake.read(CLIPS).collect()}
    assert rows.keys() == before.keys()
    for clip_id, name in names(filled).items():
        row = rows[clip_id]
        assert row.source_video == before[clip_id].source_video
        assert row.span_start_s == 0.0
        if name not in UNREADABLE:
            stored = (
                row.clip_bytes if mode == "value" else Path(exported / f"clips/{clip_id}.mp4").read_bytes()
            )
            assert bytes(stored) == (filled.clips / name).read_bytes()
            assert row.content_id.split("-")[0] == str(len(stored))
        else:
            assert row.clip_uri.endswith(f"clips/{clip_id}.mp4")


def test_a_folder_that_the_original_wrote_is_read(
    lake: Lake, filled: FilledLake, make_context: Callable[..., JobContext], tmp_path: Path
) -> None:
    """Keys and folders as `ClipWriterStage` writes them; two clips lie elsewhere, one nowhere."""
    root = tmp_path / "curated"
    (root / "metas/v0").mkdir(parents=True)
    (root / "clips").mkdir()
    good = filled.clips / "one window.mp4"
    places = {"a" * 8: None, "b" * 8: str(good), "c" * 8: str(tmp_path / "nowhere.mp4")}
    for number, (uuid, place) in enumerate(places.items()):
        meta = {
            "span_uuid": uuid,
            "source_video": "videos/long.mp4",
            "duration_span": [10.0 * number, 10.0 * number + 5],
            "width_source": 96,
            "height_source": 64,
            "framerate_source": 30.0,
            "clip_location": place or f"elsewhere/clips/{uuid}.mp4",
            "windows": [{"start_frame": 0, "end_frame": 23, "qwen_caption": "A cat."}],
            "valid": True,
        }
        (root / "metas/v0" / f"{uuid}.json").write_text(json.dumps(meta))
    shutil.copy(good, root / "clips" / f"{'a' * 8}.mp4")
    (root / "metas/v0" / "d.json").write_text("{")
    (root / "clips/unknown.mp4").write_bytes(b"x")
    context = make_context(from_curator=str(root))
    prepare = ingest.preparation(context.settings)
    assert prepare is not None
    prepare(context)
    assert context.counts == {"clips.new": 4}
    rows = {row.clip_id: row for row in lake.read(CLIPS).collect()}
    assert rows.keys() == {*places, "d"}
    assert [(rows[uuid].span_start_s, rows[uuid].span_end_s) for uuid in places] == [
        (0, 5),
        (10, 15),
        (20, 25),
    ]
    assert {rows[uuid].source_video for uuid in places} == {"videos/long.mp4"}
    assert rows["a" * 8].clip_uri.endswith(f"/clips/{'a' * 8}.mp4")
    assert rows["b" * 8].content_id == rows["a" * 8].content_id
    assert rows["c" * 8].clip_uri.endswith("nowhere.mp4")
    again = make_context("again", from_curator=str(root))
    prepare(again)
    assert again.counts == {"clips.unchanged": 4}


def test_an_export_without_a_place_or_without_windows_is_refused(
    spark: SparkSession, filled: FilledLake, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="--export-path"):
        export.run(spark, filled.settings)
    other = make_settings(output_path=filled.lake.location, export_path=str(tmp_path / "files"))
    with pytest.raises(SettingsError, match="no windows that were cut with these settings"):
        export.run(spark, other)
    assert not (tmp_path / "files").exists()
    with pytest.raises(SettingsError, match="give one of them"):
        ingest.preparation(make_settings(from_curator="a", input_path=["b"]))
    with pytest.raises(SettingsError, match="metas/v0"):
        clips_of_curator(spark, make_settings(from_curator=str(tmp_path)))
