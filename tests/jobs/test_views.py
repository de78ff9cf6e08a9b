"""`window_captions` shows each window once, with the newest of everything."""

import pytest
from chispa import assert_df_equality
from pyspark.sql import DataFrame

from jobs.lake import Lake
from jobs.newest import newest_captions
from jobs.views import VIEW, register, view_query
from schemas.captions import CAPTIONS
from schemas.enhancements import ENHANCEMENTS
from schemas.previews import PREVIEWS
from schemas.windows import WINDOWS
from tests.jobs.rows import fill


def window(window_id: str, clip_no: int, clip_id: str, *, index: int | None = 0, attempt: int = 1) -> dict:
    status = "error" if index is None else "success"
    return {
        "window_id": window_id,
        "prep_config_id": "p",
        "clip_id": clip_id,
        "clip_no": clip_no,
        "window_index": index,
        "window_status": status,
        "attempt": attempt,
    }


def caption(window_id: str, config: str, seq: int, text: str | None, *, attempt: int = 1) -> dict:
    return {
        "window_id": window_id,
        "prep_config_id": "p",
        "caption_config_id": config,
        "attempt": attempt,
        "commit_seq": seq,
        "model_variant": "qwen",
        "caption": text,
        "caption_status": "error" if text is None else "success",
    }


def enhancement(window_id: str, config: str, seq: int, text: str | None, **more: object) -> dict:
    return {
        "window_id": window_id,
        "prep_config_id": "p",
        "caption_config_id": config,
        "caption_attempt": 1,
        "enhance_config_id": "e1",
        "attempt": 1,
        "commit_seq": seq,
        "model_variant": "qwen",
        "enhanced_caption": text,
        "enhanced_status": "error" if text is None else "success",
        **more,
    }


def preview(window_id: str, config: str, seq: int, num_bytes: int, *, attempt: int = 1) -> dict:
    return {
        "window_id": window_id,
        "prep_config_id": "p",
        "preview_config_id": config,
        "attempt": attempt,
        "commit_seq": seq,
        "webp": b"x" * num_bytes,
        "num_bytes": num_bytes,
        "preview_status": "success",
    }


@pytest.fixture
def view(lake: Lake) -> DataFrame:
    fill(
        lake,
        WINDOWS,
        window("changed", 0, "A"),  # of content that the clip has no more
        window("a0", 3, "A"),
        window("a1", 3, "A", index=1),
        window("failed", 1, "B", index=None),
        window("b0", 1, "B", attempt=2),
        window("c", 2, "C", index=None),
    )
    fill(
        lake,
        CAPTIONS,
        caption("changed", "c1", 1, "of another time"),
        caption("a0", "c1", 2, "old prompt"),
        caption("a0", "c1", 3, "old prompt, third attempt", attempt=3),
        caption("a0", "c2", 4, "new prompt"),
        caption("a1", "c1", 2, None),
        caption("a1", "c1", 5, "second attempt", attempt=2),
        caption("b0", "c2", 6, None),
    )
    fill(
        lake,
        ENHANCEMENTS,
        enhancement("a0", "c1", 7, "of the old prompt"),
        enhancement("a1", "c1", 8, None, caption_attempt=2),
        enhancement("a1", "c1", 9, "better", caption_attempt=2, attempt=2),
    )
    fill(
        lake,
        PREVIEWS,
        preview("a0", "v1", 10, 1),
        preview("a0", "v2", 11, 2),
        preview("a1", "v1", 10, 3, attempt=1),
        preview("a1", "v1", 12, 4, attempt=2),
    )
    return lake.spark.sql(view_query(lake))


def test_each_window_of_the_clips_as_they_are_stands_once_with_its_newest_outcomes(view: DataFrame) -> None:
    columns = "window_id caption enhanced_caption caption_status enhanced_status preview_num_bytes"
    expected = view.sparkSession.createDataFrame(
        [
            ("a0", {"qwen": "new prompt"}, None, "success", None, 2),
            ("a1", {"qwen": "second attempt"}, {"qwen_lm": "better"}, "success", "success", 4),
            ("b0", None, None, "error", None, None),
            ("c", None, None, None, None, None),
        ],
        "window_id string not null, caption map<string,string>, enhanced_caption map<string,string>, "
        "caption_status string, enhanced_status string, preview_num_bytes long",
    )
    shown = view.select(*columns.split()).orderBy("window_id")
    assert_df_equality(shown, expected, ignore_metadata=True)
    rows = {row.window_id: row for row in view.collect()}
    assert rows["a0"].caption_text == "new prompt"
    assert (rows["a1"].caption_attempt, rows["a1"].enhance_attempt, rows["a1"].preview_attempt) == (2, 2, 2)
    assert (rows["b0"].window_attempt, rows["c"].window_status) == (2, "error")


def test_the_view_leaves_blobs_where_they_are(view: DataFrame) -> None:
    assert not [field.name for field in view.schema if field.dataType.simpleString() == "binary"]
    plan = view._jdf.queryExecution().executedPlan().toString()
    assert "webp" not in plan
    assert "mp4_bytes" not in plan
    assert "num_bytes" in plan


def test_enhancement_takes_the_caption_that_the_view_shows(lake: Lake, view: DataFrame) -> None:
    newest = {row.window_id: row.caption for row in newest_captions(lake.read(CAPTIONS)).collect()}
    shown = {row.window_id: row.caption_text for row in view.collect() if row.caption_status}
    assert {name: text for name, text in newest.items() if name != "changed"} == shown


def test_sql_knows_the_tables_and_the_view_by_their_names(lake: Lake, view: DataFrame) -> None:
    register(lake.spark, lake)
    (row,) = lake.spark.sql(
        f"SELECT webp FROM previews JOIN {VIEW} v USING (window_id, preview_config_id) "
        "WHERE window_id = 'a1' AND previews.attempt = v.preview_attempt"
    ).collect()
    assert bytes(row.webp) == b"xxxx"
