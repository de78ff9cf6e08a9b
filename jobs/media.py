"""The mp4 of every window, into the table `window_media`: part of `run` with `--keep-window-mp4`."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from conf.identity import prep_config
from conf.settings import Settings
from jobs.chunks import Chunk
from jobs.contract import one_row_per_clip
from jobs.lake import Lake
from jobs.pending import pending_windows
from jobs.session import parallelism
from jobs.stage import JobContext, Stage, StageKind, with_clips
from jobs.windows import media_limits
from schemas.window_media import WINDOW_MEDIA
from udfs.media_udf import mp4s_of_windows
from udfs.window_mp4 import check_encoder

_FILLED_LATER = ("run_id", "commit_seq", "created_at")


def build(df: DataFrame, settings: Settings) -> DataFrame:
    """Encodes windows.

    Args:
        df: one row a clip: `clip_no`, `clip_id`, `clip_bytes`, `clip_uri` and `windows`, an array of the
            windows to be encoded with their `attempt`.
        settings: the limits of decoding.

    Returns:
        The columns of `window_media` without those that a commit fills in, one row for each window.
    """
    schema = StructType([field for field in WINDOW_MEDIA.schema if field.name not in _FILLED_LATER])
    flat_map = mp4s_of_windows(media_limits(settings), schema.fieldNames())
    columns = ("clip_no", "clip_id", "clip_bytes", "clip_uri", "windows")
    return df.select(*columns).mapInPandas(flat_map, schema)


def stage(context: JobContext) -> Stage:
    """The stage that encodes the windows which have no mp4 under this window rule."""
    settings = context.settings
    config = prep_config(settings)
    mine = F.col("prep_config_id") == config.config_id

    def pending(lake: Lake, where: str) -> DataFrame:
        failed = "media_status = 'error'"
        return pending_windows(context, lake, where, table=WINDOW_MEDIA, config=mine, failed=failed)

    def rows(lake: Lake, chunk: Chunk, windows: DataFrame) -> DataFrame:
        clips = with_clips(lake, chunk, one_row_per_clip(windows), partitions=parallelism(lake.spark) * 2)
        return build(clips, settings)

    return Stage(WINDOW_MEDIA, "prep_config_id", config, "windows", pending, rows)


def _check(settings: Settings) -> None:
    check_encoder()


STAGE = StageKind("window_media", stage, _check)
