"""Job `export`: a lake as files, in the layout that NeMo Curator writes."""

import io
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.errors import ClipError, SettingsError
from conf.identity import prep_config
from conf.settings import Settings
from jobs.chunks import Chunk, plan_chunks
from jobs.lake import Lake
from jobs.session import check_packages, small_batches
from jobs.stage import StageKind
from jobs.views import view_query
from schemas.clips import CLIPS
from schemas.previews import PREVIEWS
from schemas.windows import WINDOWS
from udfs.curator import clip_file, meta_document, meta_file, preview_file
from udfs.storage import open_clip
from udfs.worker_log import log_to_stderr
from udfs.writing import write_file

log = logging.getLogger(__name__)

WINDOWS_PER_CHUNK = 10_000
"""So that the keys of a chunk's previews can be broadcast, and no WebP is shuffled."""

Write = Callable[[dict[str, Any]], str]
"""Writes the files of one row; returns what is counted."""

_WRITTEN = "what string"
_OF_THE_WINDOW = (
    "window_index",
    "start_frame",
    "end_frame",
    "frame_rate",
    "width",
    "height",
    "video_codec",
    "caption",
    "enhanced_caption",
    "window_error",
    "caption_error",
    "caption_status",
    "enhanced_error",
    "enhanced_status",
    "preview_error",
    "preview_status",
)


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote: files by kind, and where to."""

    counts: dict[str, int]
    path: str

    def render(self) -> str:
        """One line."""
        told = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        return f"export: {told or 'no files'} written to {self.path}\n"


def kinds(settings: Settings) -> list[StageKind]:
    """No stage: a lake is only read."""
    return []


def run(spark: SparkSession, settings: Settings) -> ExportReport:
    """Writes the newest captions and previews of a lake as files; files that are there are replaced.

    Raises:
        SettingsError: no place is named, or the lake has no windows under these settings.
    """
    if not settings.export.path:
        raise SettingsError("export.path is not set; name a folder or a URI with --export-path")
    path = _place(settings.export.path)
    lake = Lake(spark, settings.lake.output_path)
    prep_id = prep_config(settings).config_id
    windows = lake.read(WINDOWS).where(F.col("prep_config_id") == prep_id)
    counts = windows.groupBy("clip_no").count().orderBy("clip_no").collect()
    if not counts:
        raise SettingsError(
            f"the lake {lake.location} has no windows that were cut with these settings; name those of the "
            "run with --captioning-window-size and the like, or with --config"
        )
    check_packages(spark)
    written: Counter[str] = Counter()
    with small_batches(spark):
        for chunk in plan_chunks(((row[0], row[1]) for row in counts), per_commit=WINDOWS_PER_CHUNK):
            written += _export_chunk(lake, chunk, prep_id, path, with_clips=settings.export.clips)
            log.info("export %s %s", chunk.where, " ".join(f"{k}={n}" for k, n in sorted(written.items())))
    return ExportReport(dict(written), path)


def _place(path: str) -> str:
    """The place as every executor understands it: each of them has a working folder of its own."""
    return path if ":" in path else str(Path(path).absolute())


def _export_chunk(lake: Lake, chunk: Chunk, prep_id: str, path: str, *, with_clips: bool) -> Counter[str]:
    view = lake.spark.sql(view_query(lake, where=chunk.where)).where(F.col("prep_config_id") == prep_id)
    clips = lake.read(CLIPS).where(chunk.where)
    written = _write(_metas(view, clips), _meta_writer(path, with_clips=with_clips))
    written += _write(_previews(view, lake.read(PREVIEWS).where(chunk.where)), _preview_writer(path))
    if with_clips:
        current = view.select("clip_no").distinct()
        wanted = clips.join(F.broadcast(current), "clip_no", "left_semi")
        written += _write(wanted.select("clip_id", "clip_bytes", "clip_uri"), _clip_writer(path))
    return written


def _metas(view: DataFrame, clips: DataFrame) -> DataFrame:
    """One row a clip, with its windows in any order."""
    gathered = view.groupBy("clip_no").agg(F.collect_list(F.struct(*_OF_THE_WINDOW)).alias("windows"))
    # Ingest begins content ids with the size; other ids say nothing of it.
    size = F.regexp_extract("content_id", r"^(\d+)-", 1)
    num_bytes = F.coalesce(F.length("clip_bytes").cast("long"), F.when(size != "", size.cast("long")))
    known = clips.select(
        "clip_no",
        "clip_id",
        "source_video",
        "span_start_s",
        "span_end_s",
        "clip_uri",
        num_bytes.alias("num_bytes"),
    )
    return known.join(F.broadcast(gathered), "clip_no")


def _previews(view: DataFrame, previews: DataFrame) -> DataFrame:
    keys = ["window_id", "prep_config_id", "preview_config_id", "attempt"]
    newest = view.where("preview_status = 'success'").withColumnRenamed("preview_attempt", "newest")
    newest = newest.select(*keys[:3], F.col("newest").alias("attempt"), "start_frame", "end_frame")
    shown = previews.select(*keys, "clip_id", "webp").join(F.broadcast(newest), keys)
    return shown.select("clip_id", "start_frame", "end_frame", "webp")


def _meta_writer(path: str, *, with_clips: bool) -> Write:
    def write(row: dict[str, Any]) -> str:
        document = meta_document(row, output_path=path, with_clip=with_clips)
        write_file(meta_file(path, row["clip_id"]), io.BytesIO(document))
        return "metas"

    return write


def _preview_writer(path: str) -> Write:
    def write(row: dict[str, Any]) -> str:
        place = preview_file(path, row["clip_id"], start_frame=row["start_frame"], end_frame=row["end_frame"])
        write_file(place, io.BytesIO(row["webp"]))
        return "previews"

    return write


def _clip_writer(path: str) -> Write:
    def write(row: dict[str, Any]) -> str:
        try:
            source = open_clip(row["clip_bytes"], row["clip_uri"])
        except ClipError as error:
            log.warning("clip_id=%s is not exported: %s", row["clip_id"], error)
            return "unreadable clips not"
        with open(source, "rb") if isinstance(source, str) else source as stream:  # noqa: PTH123
            write_file(clip_file(path, row["clip_id"]), stream)
        return "clips"

    return write


def _write(rows: DataFrame, write: Write) -> Counter[str]:
    """Writes the files of all rows where the rows are; counts them."""

    def write_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        log_to_stderr(logging.INFO)
        for batch in batches:
            done = [write(row) for row in batch.to_pylist()]
            yield pa.RecordBatch.from_arrays([pa.array(done, pa.string())], ["what"])

    counted = rows.mapInArrow(write_batches, _WRITTEN).groupBy("what").count().collect()
    return Counter({row["what"]: row["count"] for row in counted})


def main(argv: list[str] | None = None) -> int:
    """The command `captionlake export`; returns the exit code."""
    from jobs.cli import main as cli

    return cli(["export", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
