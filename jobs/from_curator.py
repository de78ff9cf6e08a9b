"""Clips from a folder that NeMo Curator (or `export`) wrote, with their ids, source videos and spans."""

import logging
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from conf.errors import ClipError, SettingsError
from conf.settings import Settings
from jobs.session import parallelism
from schemas.clips import CLIPS
from udfs.clip_rows import clip_row
from udfs.curator import CuratorClip, get_output_path_clips, get_output_path_metas, read_meta
from udfs.storage import ClipFile, list_clips, open_clip
from udfs.worker_log import log_to_stderr

log = logging.getLogger(__name__)

_LISTED = "stem string, meta_uri string, uri string, size_bytes long, mtime_us long, local boolean"


def clips_of_curator(spark: SparkSession, settings: Settings) -> DataFrame:
    """The clips of the folder `lake.from_curator`, as rows of `clips` without `clip_no`.

    A clip is the file in the folder, or else where its metadata says that it lies. A clip whose metadata
    cannot be read keeps the id that its file is named by.

    Raises:
        SettingsError: the folder has no metadata of clips.
    """
    folder = settings.lake.from_curator or ""
    metas = {_stem(file.uri): file for file in list_clips(get_output_path_metas(folder))}
    clips = {_stem(file.uri): file for file in _there(get_output_path_clips(folder))}
    nothing = (None, None, None, None)
    rows = [
        (stem, metas[stem].uri, *((vars(clips[stem]).values()) if stem in clips else nothing))
        for stem in sorted(metas)
    ]
    if unknown := clips.keys() - metas.keys():
        log.warning("%d clips of %s have no metadata and are left out", len(unknown), folder)
    schema = StructType([field for field in CLIPS.schema if field.name != "clip_no"])
    columns, mode = schema.fieldNames(), settings.lake.ingest_mode

    def read(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        log_to_stderr(logging.INFO)
        for batch in batches:
            for row in batch.itertuples(index=False):
                clip = _row(row, mode)
                yield pd.DataFrame([[clip.get(name) for name in columns]], columns=columns, dtype=object)

    listed = spark.createDataFrame(rows, _LISTED).repartition(parallelism(spark) * 2)
    return listed.mapInPandas(read, schema)


def _there(location: str) -> list[ClipFile]:
    """The files of a folder that need not be there."""
    try:
        return list_clips(location)
    except SettingsError:
        return []


def _row(listed: Any, mode: str) -> dict[str, object]:
    meta = _meta(listed.stem, listed.meta_uri)
    said: dict[str, object] = {
        "clip_id": meta.clip_id,
        "span_start_s": meta.span_start_s,
        "span_end_s": meta.span_end_s,
    }
    file = None
    if isinstance(listed.uri, str):
        file = ClipFile(listed.uri, int(listed.size_bytes), int(listed.mtime_us), bool(listed.local))
    elif meta.location:
        file = next(iter(_there(meta.location)), None)
    if file is None:
        # Where it should be: the stages after this one say that it is not.
        place = meta.location or listed.stem
        return {"clip_uri": place, "source_video": meta.source_video or place} | said
    row = clip_row(file, mode) | said
    return row | ({"source_video": meta.source_video} if meta.source_video else {})


def _meta(stem: str, uri: str) -> CuratorClip:
    try:
        source = open_clip(None, uri)
        with open(source, "rb") if isinstance(source, str) else source as stream:  # noqa: PTH123
            return read_meta(stream.read())
    except (ClipError, OSError, ValueError) as error:
        log.warning("meta=%s cannot be read: %s", uri, error)
        return CuratorClip(stem, None, None, None, None)


def _stem(uri: str) -> str:
    return PurePosixPath(urlsplit(uri).path).stem
