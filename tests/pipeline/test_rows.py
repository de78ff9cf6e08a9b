"""After one run: every clip has its outcome, and every row tells what happened."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from deltalake import DeltaTable
from PIL import Image
from pyspark.sql import DataFrame, Row, SparkSession

from conf.variants import DEMO
from jobs import export
from jobs.lake import Lake
from jobs.sql import query
from schemas.tables import TABLES
from tests.pipeline.conftest import TOO_LONG, FilledLake, lake_settings
from tests.udfs.media import plain_decode
from udfs.resize import fit_size, resize_frame

GOOD = {f"scene_{seed}.mp4" for seed in range(6)} | {"two_windows.mp4", "rotated.mov"}
WITHOUT_WINDOW = {
    "three_frames.mp4": ("skipped", "3 frames"),
    "playlist.mp4": ("error", ""),
    "audio_only.m4a": ("error", "no video"),
    "text.mp4": ("error", ""),
    "empty.mp4": ("error", "empty"),
    "gone.mp4": ("error", ""),
}


def table(spark: SparkSession, lake: FilledLake, name: str) -> DataFrame:
    return spark.read.format("delta").load(str(lake.folder / name))


def view(spark: SparkSession, lake: FilledLake) -> list[Row]:
    statement = """
        SELECT w.*, element_at(split(c.source_video, '/'), -1) AS name
        FROM window_captions w JOIN clips c USING (clip_id) ORDER BY name, window_index
    """
    return query(spark, Lake(spark, str(lake.folder)), statement).collect()


def record_of(lake: FilledLake, window_id: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What reached the vision engine for a window, and the tensors."""
    (folder,) = (lake.records / "captions").glob(f"{window_id}#*")
    return json.loads((folder / "stage1.json").read_text()), dict(np.load(folder / "stage1.npz"))


def test_no_clip_disappears_and_each_bad_one_says_why(spark: SparkSession, filled_lake: FilledLake) -> None:
    rows = view(spark, filled_lake)
    assert {row.name for row in rows} == {path.name for path in filled_lake.clips.iterdir()}
    for row in rows:
        if row.name in WITHOUT_WINDOW:
            status, reason = WITHOUT_WINDOW[row.name]
            assert (row.window_index, row.window_status) == (None, status), row.name
            assert reason in row.window_error
            assert (row.caption_status, row.enhanced_status, row.preview_status) == ("skipped",) * 3
        elif row.name == "cut_off.mkv":
            assert row.window_status == "partial"
            assert row.window_error
        else:
            assert row.window_status == "success", row.name


def test_each_good_window_has_caption_enhancement_and_preview(
    spark: SparkSession, filled_lake: FilledLake
) -> None:
    rows = [row for row in view(spark, filled_lake) if row.name in GOOD]
    assert Counter(row.name for row in rows)["two_windows.mp4"] == 2
    for row in rows:
        assert row.caption_status in ("success", "truncated")
        assert row.finish_reason == ("length" if row.caption_status == "truncated" else "stop")
        assert row.caption == {"demo": row.caption_text}
        assert row.preview_status == "success"
        if row.enhanced_status != "skipped":
            assert row.enhanced_caption == {"demo_lm": row.enhanced_text}


def test_a_poisoned_window_costs_its_own_row_only(spark: SparkSession, filled_lake: FilledLake) -> None:
    errors = [row for row in view(spark, filled_lake) if row.caption_status == "error"]
    assert [row.name for row in errors] == [TOO_LONG]
    assert "long" in errors[0].caption_error
    assert errors[0].caption_text is None
    assert errors[0].enhanced_status == "skipped"
    assert errors[0].preview_status == "success"


def test_token_counts_and_captions_are_those_of_the_window_itself(
    spark: SparkSession, filled_lake: FilledLake
) -> None:
    captioned = [row for row in view(spark, filled_lake) if row.caption_text is not None]
    assert len({row.caption_text for row in captioned}) > 1
    for row in captioned:
        record, tensors = record_of(filled_lake, row.window_id)
        assert row.caption_text == record["answer"]["text"]
        assert row.prompt_tokens == len(record["token_ids"])
        assert row.output_tokens == record["answer"]["output_tokens"]
        merged = np.prod(tensors["video_grid_thw"], axis=-1).sum() // 4
        video_tokens = Counter(record["token_ids"]).most_common(1)[0][1]
        assert video_tokens == merged


def test_the_model_sees_the_frames_of_decoding_everything_in_order_at_their_real_times(
    spark: SparkSession, filled_lake: FilledLake
) -> None:
    for row in view(spark, filled_lake):
        if row.caption_text is None or row.name == "cut_off.mkv":
            continue
        decoded = list(plain_decode(filled_lake.clips / row.name))
        windows = table(spark, filled_lake, "windows").where(f"window_id = '{row.window_id}'").collect()
        picks = windows[0].frame_indices
        height, width = fit_size(*decoded[0][1].shape[:2], num_frames=len(picks), variant=DEMO)
        _, tensors = record_of(filled_lake, row.window_id)
        expected = np.stack([resize_frame(decoded[pick][1], height, width) for pick in picks])
        np.testing.assert_array_equal(tensors["frames"], expected, err_msg=row.name)
        np.testing.assert_allclose(tensors["times_s"], [decoded[pick][0] for pick in picks], atol=1e-6)


def test_previews_are_animated_pictures_of_the_stated_size(
    spark: SparkSession, filled_lake: FilledLake
) -> None:
    rows = table(spark, filled_lake, "previews").where("preview_status = 'success'").collect()
    assert rows
    for row in rows:
        with Image.open(io.BytesIO(row.webp)) as picture:
            assert picture.format == "WEBP"
            assert picture.size == (row.width, row.height)
            assert picture.height == 240
            assert getattr(picture, "n_frames", 1) == row.num_frames
        assert len(row.webp) == row.num_bytes


def test_the_report_counts_what_the_tables_hold(spark: SparkSession, filled_lake: FilledLake) -> None:
    status = {"windows": "window", "captions": "caption", "enhancements": "enhanced", "previews": "preview"}
    held = {
        f"{name}.{row[0]}": row[1]
        for name, prefix in status.items()
        for row in table(spark, filled_lake, name).groupBy(f"{prefix}_status").count().collect()
    }
    counted = {name: n for name, n in filled_lake.report.counts.items() if not name.startswith("clips.")}
    assert counted == held
    run = table(spark, filled_lake, "runs").collect()[0]
    assert run.run_status == "success"
    assert run.status_counts == filled_lake.report.counts
    assert run.tokens_per_s > 0
    assert 0 <= run.gpu_idle_share < 1
    assert run.gpu_idle_share == filled_lake.report.gpu_idle_share
    ids = {row.config_id for row in table(spark, filled_lake, "configs").collect()}
    assert set(run.config_ids.values()) == ids


@pytest.mark.parametrize("name", [one.name for one in TABLES])
def test_other_readers_see_the_same_rows_and_columns(
    spark: SparkSession, filled_lake: FilledLake, name: str
) -> None:
    ours = table(spark, filled_lake, name)
    theirs = DeltaTable(str(filled_lake.folder / name)).to_pyarrow_table()
    assert theirs.column_names == ours.columns
    connection = duckdb.connect()
    connection.register("delta_rows", theirs)
    key = next(one for one in TABLES if one.name == name).key
    columns = ", ".join(key)
    expected = sorted(tuple(row) for row in ours.select(*key).collect())
    assert sorted(connection.sql(f"SELECT {columns} FROM delta_rows").fetchall()) == expected
    texts = [column for column in ours.columns if column.endswith(("_status", "caption", "_error", "_id"))]
    for column in texts:
        ours_values = Counter(row[0] for row in ours.select(column).collect())
        assert Counter(theirs.column(column).to_pylist()) == ours_values


def test_keys_are_unique_in_every_table(spark: SparkSession, filled_lake: FilledLake) -> None:
    for one in TABLES:
        rows = table(spark, filled_lake, one.name)
        assert rows.select(*one.key).distinct().count() == rows.count(), one.name


def test_commits_are_bounded(spark: SparkSession, filled_lake: FilledLake) -> None:
    commits = table(spark, filled_lake, "captions").groupBy("commit_seq").count().collect()
    assert len(commits) > 1
    assert max(row["count"] for row in commits) <= 9


def test_exported_captions_stand_under_the_original_s_keys(
    spark: SparkSession, filled_lake: FilledLake, engine_flags: dict[str, Any], tmp_path: Path
) -> None:
    export.run(spark, lake_settings(engine_flags, filled_lake.folder, export_path=str(tmp_path)))
    told = {
        (meta["span_uuid"], window["start_frame"]): window
        for meta in (json.loads(path.read_bytes()) for path in (tmp_path / "metas/v0").iterdir())
        for window in meta["windows"]
    }
    captioned = [row for row in view(spark, filled_lake) if row.window_index is not None]
    assert len(captioned) == len(told)
    for row in captioned:
        window = told[row.clip_id, row.start_frame]
        assert window.get("demo_caption") == row.caption_text
        assert window.get("demo_lm_enhanced_caption") == row.enhanced_text
