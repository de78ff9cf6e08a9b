"""The view `window_captions`: each window with its newest caption, enhancement, preview and mp4."""

from pyspark.sql import SparkSession

from jobs.lake import Lake
from schemas.captions import CAPTIONS
from schemas.enhancements import ENHANCEMENTS
from schemas.previews import PREVIEWS
from schemas.tables import TABLES
from schemas.window_media import WINDOW_MEDIA
from schemas.windows import WINDOWS

VIEW = "window_captions"

SHOWN = (WINDOWS, CAPTIONS, ENHANCEMENTS, PREVIEWS, WINDOW_MEDIA)
"""The tables that the view is made of."""

# Newest: the latest commit, then the highest attempt. Attempts count within one config, so they cannot
# come first. Previews and mp4s are chosen without reading a blob.
_QUERY = """
WITH current_windows AS (
  SELECT * FROM (
    SELECT *, max(struct(clip_no, attempt)) OVER (PARTITION BY clip_id, prep_config_id) AS newest
    FROM {windows}
  ) WHERE clip_no = newest.clip_no AND attempt = newest.attempt
),
newest_captions AS (
  SELECT * FROM (
    SELECT *, row_number() OVER (
      PARTITION BY window_id, prep_config_id ORDER BY commit_seq DESC, attempt DESC, caption_config_id
    ) AS place
    FROM {captions}
  ) WHERE place = 1
),
newest_enhancements AS (
  SELECT * FROM (
    SELECT *, row_number() OVER (
      PARTITION BY window_id, prep_config_id, caption_config_id, caption_attempt
      ORDER BY commit_seq DESC, attempt DESC, enhance_config_id
    ) AS place
    FROM {enhancements}
  ) WHERE place = 1
),
newest_previews AS (
  SELECT * FROM (
    SELECT window_id, prep_config_id, preview_config_id, attempt, width, height, num_frames, num_bytes,
      preview_status, preview_error,
      row_number() OVER (
        PARTITION BY window_id, prep_config_id ORDER BY commit_seq DESC, attempt DESC, preview_config_id
      ) AS place
    FROM {previews}
  ) WHERE place = 1
),
newest_media AS (
  SELECT * FROM (
    SELECT window_id, prep_config_id, attempt, num_bytes, media_status, media_error,
      row_number() OVER (
        PARTITION BY window_id, prep_config_id ORDER BY commit_seq DESC, attempt DESC
      ) AS place
    FROM {window_media}
  ) WHERE place = 1
)
SELECT
  w.clip_id, w.clip_no, w.window_id, w.prep_config_id, w.window_index,
  w.start_frame, w.end_frame, w.num_frames, w.start_s, w.end_s, w.frame_rate, w.width, w.height,
  w.video_codec, w.window_status, w.window_error, w.attempt AS window_attempt,
  CASE WHEN c.caption IS NOT NULL THEN map(c.model_variant, c.caption) END AS caption,
  CASE WHEN e.enhanced_caption IS NOT NULL
    THEN map(concat(e.model_variant, '_lm'), e.enhanced_caption) END AS enhanced_caption,
  c.caption AS caption_text, c.caption_status, c.caption_error, c.stage1_caption,
  c.caption_config_id, c.attempt AS caption_attempt, c.model_variant, c.model_id, c.model_revision,
  c.prompt_variant, c.prompt_text, c.finish_reason, c.prompt_tokens, c.output_tokens, c.latency_s,
  e.enhanced_caption AS enhanced_text, e.enhanced_status, e.enhanced_error,
  e.enhance_config_id, e.attempt AS enhance_attempt, e.model_id AS enhance_model_id,
  e.output_tokens AS enhanced_output_tokens,
  p.preview_config_id, p.attempt AS preview_attempt, p.preview_status, p.preview_error,
  p.width AS preview_width, p.height AS preview_height, p.num_frames AS preview_num_frames,
  p.num_bytes AS preview_num_bytes,
  m.attempt AS media_attempt, m.media_status, m.media_error, m.num_bytes AS media_num_bytes
FROM current_windows w
LEFT JOIN newest_captions c ON w.window_id = c.window_id AND w.prep_config_id = c.prep_config_id
LEFT JOIN newest_enhancements e
  ON c.window_id = e.window_id AND c.prep_config_id = e.prep_config_id
  AND c.caption_config_id = e.caption_config_id AND c.attempt = e.caption_attempt
LEFT JOIN newest_previews p ON w.window_id = p.window_id AND w.prep_config_id = p.prep_config_id
LEFT JOIN newest_media m ON w.window_id = m.window_id AND w.prep_config_id = m.prep_config_id
"""


def view_query(lake: Lake, *, where: str | None = None) -> str:
    """The view's query over the tables of a lake, or over those of their rows that meet a condition."""
    tables = {table.name: lake.name_of(table) for table in SHOWN}
    if where is not None:
        # Inside, because a condition on the view does not reach below its windows.
        tables = {name: f"(SELECT * FROM {table} WHERE {where})" for name, table in tables.items()}  # noqa: S608
    return _QUERY.format(**tables)


def register(spark: SparkSession, lake: Lake) -> None:
    """Makes the tables and the view known to the session's SQL under their own names.

    Raises:
        SettingsError: the lake lacks a table.
    """
    for table in TABLES:
        lake.read(table).createOrReplaceTempView(table.name)
    spark.sql(view_query(lake)).createOrReplaceTempView(VIEW)


def create_in_catalog(lake: Lake) -> None:
    """Creates the persistent view of a lake that is a `catalog.schema`; does nothing for a folder."""
    if lake.in_catalog:
        schema = ".".join(f"`{part}`" for part in lake.location.split("."))
        lake.spark.sql(f"CREATE OR REPLACE VIEW {schema}.`{VIEW}` AS {view_query(lake)}")
