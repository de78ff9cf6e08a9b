"""What the tables promise in their schemas: names, comments, keys and statuses are a public contract."""

import pytest
from pyspark.sql.types import StructType

from schemas.captions import CAPTIONS
from schemas.clips import CLIPS
from schemas.enhancements import ENHANCEMENTS
from schemas.previews import PREVIEWS
from schemas.status import CaptionStatus, PreviewStatus, WindowStatus
from schemas.table import Table
from schemas.tables import TABLES
from schemas.window_media import WINDOW_MEDIA
from schemas.windows import WINDOWS

PROVENANCE = "run_id commit_seq created_at"
ANSWER = "finish_reason prompt_tokens output_tokens latency_s"
MODEL = "model_variant model_id model_revision prompt_variant prompt_text"

COLUMNS = {
    "clips": "clip_id clip_no source_video span_start_s span_end_s clip_bytes clip_uri content_id",
    "windows": "window_id prep_config_id clip_id clip_no window_index start_frame end_frame num_frames "
    "start_s end_s frame_rate width height video_codec frame_indices frame_times_s window_status "
    "window_error",
    "captions": "window_id prep_config_id caption_config_id attempt clip_id clip_no window_index start_frame "
    f"end_frame start_s end_s {MODEL} caption stage1_caption caption_status caption_error {ANSWER} "
    f"{PROVENANCE}",
    "enhancements": "window_id prep_config_id caption_config_id enhance_config_id attempt enhanced_caption "
    f"enhanced_status enhanced_error {MODEL} {ANSWER} {PROVENANCE}",
    "previews": "window_id prep_config_id preview_config_id attempt webp width height num_frames num_bytes "
    f"preview_status preview_error {PROVENANCE}",
    "window_media": "window_id prep_config_id attempt clip_id clip_no window_index mp4_bytes num_bytes "
    f"media_status media_error {PROVENANCE}",
    "runs": "run_id settings_json versions status_counts windows_per_s tokens_per_s gpu_idle_share wall_s",
    "configs": "config_id config_json",
}
"""What queries of users stand on; a table may have more, never less."""

KEYS = {
    CLIPS: ("clip_id",),
    WINDOWS: ("window_id", "prep_config_id"),
    CAPTIONS: ("window_id", "prep_config_id", "caption_config_id", "attempt"),
    WINDOW_MEDIA: ("window_id", "prep_config_id", "attempt"),
    PREVIEWS: ("window_id", "prep_config_id", "preview_config_id", "attempt"),
    ENHANCEMENTS: (
        "window_id",
        "prep_config_id",
        "caption_config_id",
        "caption_attempt",
        "enhance_config_id",
        "attempt",
    ),
}

each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


def test_the_lake_has_these_tables() -> None:
    assert {table.name for table in TABLES} == set(COLUMNS)


@each_table
def test_no_column_that_queries_use_is_gone(table: Table) -> None:
    assert set(COLUMNS[table.name].split()) <= set(table.schema.fieldNames())


@each_table
def test_every_column_says_what_it_holds(table: Table) -> None:
    assert not [field.name for field in table.schema if not field.metadata.get("comment")]
    assert len(set(table.schema.fieldNames())) == len(table.schema)


@each_table
def test_a_key_is_made_of_columns_that_are_never_null(table: Table) -> None:
    assert all(not table.schema[name].nullable for name in table.key)


@pytest.mark.parametrize("table", KEYS, ids=lambda table: table.name)
def test_the_keys_are_those_of_the_contract(table: Table) -> None:
    assert table.key == KEYS[table]


@each_table
def test_files_are_skipped_by_keys_and_never_by_blobs(table: Table) -> None:
    assert set(table.stats) <= set(table.schema.fieldNames())
    assert set(table.key) <= set(table.stats)
    assert "clip_no" in table.stats or "clip_no" not in table.schema.fieldNames()
    assert not {"clip_bytes", "webp", "mp4_bytes"} & set(table.stats)


@each_table
def test_tables_with_blobs_are_written_in_row_groups_that_fit_in_memory(table: Table) -> None:
    has_blob = "binary" in [field.dataType.simpleString() for field in table.schema]
    assert table.has_blobs == has_blob
    properties = table.table_properties
    assert properties["delta.enableDeletionVectors"] == "false"
    assert properties.get("parquet.block.size") == ("33554432" if has_blob else None)
    assert properties.get("parquet.page.size.row.check.min") == ("1" if has_blob else None)


def test_statuses_are_those_of_the_contract() -> None:
    assert [str(status) for status in WindowStatus] == ["success", "partial", "error", "skipped"]
    assert [str(status) for status in CaptionStatus] == ["success", "truncated", "error", "skipped"]
    assert [str(status) for status in PreviewStatus] == ["success", "error", "skipped"]


@each_table
def test_a_status_column_names_all_its_statuses(table: Table) -> None:
    words = {
        "window_status": WindowStatus,
        "preview_status": PreviewStatus,
        "media_status": PreviewStatus,
        "run_status": ("success", "error"),
    }
    if table.status:
        comment = table.schema[table.status].metadata["comment"]
        for status in words.get(table.status, CaptionStatus):
            assert str(status) in comment
        assert not table.schema[table.status].nullable


def test_schemas_are_not_shared_by_accident() -> None:
    assert all(isinstance(table.schema, StructType) for table in TABLES)
    assert len({id(table.schema) for table in TABLES}) == len(TABLES)
