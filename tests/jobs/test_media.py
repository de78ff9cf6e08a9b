"""With `--keep-window-mp4` every window is there as an mp4 of its own, once; else none is."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from pyspark.sql import Row, SparkSession

from conf.settings import Settings
from jobs import media, retry, run, windows
from jobs.lake import Lake
from jobs.sql import query
from schemas.window_media import WINDOW_MEDIA
from tests.jobs.conftest import CLIP_FLAGS, FilledLake, ingest_clips, run_alone

FLAGS = {name.removeprefix("--").replace("-", "_"): value for name, value in CLIP_FLAGS.items()}


def kept(lake: Lake) -> list[Row]:
    return lake.read(WINDOW_MEDIA).orderBy("clip_no", "window_index", "attempt").collect()


def test_nothing_is_kept_unless_it_is_asked_for(filled: FilledLake) -> None:
    assert kept(filled.lake) == []


def test_a_run_keeps_every_window_once(spark: SparkSession, filled: FilledLake, tmp_path: Path) -> None:
    copy = filled.copy(tmp_path, keep_window_mp4=True)
    report = run.run(spark, copy.settings)
    assert report.counts == {"window_media.success": 7, "window_media.skipped": 6}
    rows = kept(copy.lake)
    shown = query(spark, copy.lake, "SELECT * FROM window_captions").collect()
    view = {row.window_id: row for row in shown}
    assert {row.window_id for row in rows} == set(view)
    for row in rows:
        window = view[row.window_id]
        assert (window.media_status, window.media_num_bytes) == (row.media_status, row.num_bytes)
        if row.media_status == "skipped":
            assert row.media_error == f"the clip has no window: {window.window_error}"
            assert row.mp4_bytes is None
            continue
        assert row.num_bytes == len(row.mp4_bytes)
        with av.open(io.BytesIO(bytes(row.mp4_bytes))) as container:
            frames = list(container.decode(video=0))
            assert not container.streams.audio
        assert len(frames) == row.num_frames == window.num_frames
        assert (frames[0].width, frames[0].height) == (row.width, row.height)
        assert (row.width, row.height) == (window.width, window.height)
        assert frames[-1].time == pytest.approx(window.end_s - window.start_s, abs=1e-3)
    assert run.run(spark, copy.settings).counts == {}


def test_an_mp4_that_failed_is_made_by_retry(
    lake: Lake, filled: FilledLake, tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    clip, moved = tmp_path / "mine.mp4", tmp_path / "moved.mp4"
    shutil.copy(filled.clips / "three windows ü.mkv", clip)
    settings = make_settings(input_path=(str(clip),), keep_window_mp4=True, **FLAGS)
    ingest_clips(lake, settings)
    run_alone(lake, settings, windows.STAGE)
    clip.rename(moved)
    assert run_alone(lake, settings, media.STAGE) == {"window_media.error": 3}
    assert all("does not exist" in row.media_error for row in kept(lake))

    moved.rename(clip)
    off = settings.model_copy(
        update={
            "caption_preparation": settings.caption_preparation.model_copy(
                update={"generate_previews": False}
            )
        }
    )
    counts = retry.retry(lake.spark, off, where="media_status = 'error' AND window_index = 1").counts
    assert counts == {"window_media.success": 1}
    assert [(row.window_index, row.attempt, row.media_status) for row in kept(lake)] == [
        (0, 1, "error"),
        (1, 1, "error"),
        (1, 2, "success"),
        (2, 1, "error"),
    ]
