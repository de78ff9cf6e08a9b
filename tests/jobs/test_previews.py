"""Windows become animated WebPs that really play, or rows that say why not."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from pyspark.sql import Row

from conf.identity import preview_config
from conf.settings import Settings
from jobs import preview, retry, windows
from jobs.lake import Lake
from schemas.previews import PREVIEWS
from schemas.windows import WINDOWS
from tests.jobs.conftest import CLIP_FLAGS, FilledLake, ingest_clips, run_alone

FLAGS = {name.removeprefix("--").replace("-", "_"): value for name, value in CLIP_FLAGS.items()}


def previews(lake: Lake) -> list[Row]:
    order = ("clip_no", "window_index", "preview_config_id", "attempt")
    return lake.read(PREVIEWS).orderBy(*order).collect()


@pytest.fixture(scope="module")
def made(filled: FilledLake) -> list[Row]:
    return previews(filled.lake)


def test_every_window_has_a_preview_or_a_reason(made: list[Row], filled: FilledLake) -> None:
    cut = {row.window_id: row for row in filled.lake.read(WINDOWS).collect()}
    assert {row.window_id for row in made} == set(cut)
    assert len(made) == len(cut)
    for row in made:
        window = cut[row.window_id]
        has_frames = window.window_index is not None
        assert row.preview_status == ("success" if has_frames else "skipped")
        if not has_frames:
            assert row.preview_error == f"the clip has no window: {window.window_error}"
            assert row.webp is row.num_bytes is row.width is None
    assert {row.preview_config_id for row in made} == {preview_config(filled.settings).config_id}
    assert {row.run_id for row in made} == {filled.report.run_id}


def test_a_preview_plays_and_is_as_its_row_says(made: list[Row], filled: FilledLake) -> None:
    cut = {row.window_id: row for row in filled.lake.read(WINDOWS).collect()}
    shown = [row for row in made if row.preview_status == "success"]
    assert len(shown) == 7
    for row in shown:
        image = Image.open(io.BytesIO(bytes(row.webp)))
        assert (image.format, image.size, image.n_frames) == ("WEBP", (row.width, row.height), row.num_frames)
        assert row.height == 32
        assert row.num_bytes == len(row.webp)
        window = cut[row.window_id]
        assert row.num_frames == pytest.approx(window.num_frames / window.frame_rate * 10, abs=1)
        assert image.is_animated


def test_previews_are_made_once_repaired_when_asked_and_made_anew_for_other_settings(
    lake: Lake, filled: FilledLake, tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    clip, spark = tmp_path / "mine.mp4", lake.spark
    shutil.copy(filled.clips / "three windows ü.mkv", clip)
    settings = make_settings(input_path=(str(clip),), **FLAGS)
    ingest_clips(lake, settings)
    run_alone(lake, settings, windows.STAGE)
    clip.rename(tmp_path / "moved.mp4")

    assert preview.run(spark, settings).counts == {"previews.error": 3}
    assert all("does not exist" in row.preview_error and row.webp is None for row in previews(lake))
    assert run_alone(lake, settings, preview.STAGE) == {}

    (tmp_path / "moved.mp4").rename(clip)
    where = "preview_status = 'error' AND window_index > 0"
    counts = retry.retry(spark, settings, where=where).counts
    assert counts == {"previews.success": 2}
    rows = previews(lake)
    assert [(row.window_index, row.attempt, row.preview_status) for row in rows] == [
        (0, 1, "error"),
        (1, 1, "error"),
        (1, 2, "success"),
        (2, 1, "error"),
        (2, 2, "success"),
    ]

    other = make_settings(**FLAGS | {"preview_target_height": 16})
    assert run_alone(lake, other, preview.STAGE) == {"previews.success": 3}
    beside = previews(lake)
    assert [row for row in beside if row in rows] == rows
    assert [row.height for row in beside if row not in rows] == [16] * 3
    assert run_alone(lake, other, preview.STAGE) == {}
    faster = make_settings(**FLAGS | {"preview_num_cpus_per_worker": 2, "verbose": True})
    assert run_alone(lake, faster, preview.STAGE) == {}
