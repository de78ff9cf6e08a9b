"""Clips become windows: every clip has its outcome, and nothing is cut twice."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import Row

from conf.identity import prep_config
from conf.settings import Settings
from jobs import retry, windows
from jobs.lake import Lake
from schemas.clips import CLIPS
from schemas.windows import WINDOWS
from tests import media_maker
from tests.jobs.conftest import WINDOW_FRAMES, FilledLake, ingest_clips, run_alone
from udfs.identity import window_uuid
from udfs.storage import local_path


def windows_by_clip(lake: Lake, where: str = "true") -> dict[str, list[Row]]:
    """The rows of `windows` by the name of the clip's file, in order."""
    names = lake.read(CLIPS).select("clip_no", "source_video", "content_id")
    rows = lake.read(WINDOWS).where(where).join(names, "clip_no", "left")
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows.orderBy("clip_no", "attempt", "window_index").collect():
        found[(local_path(row.source_video or "") or "").rpartition("/")[2]].append(row)
    return dict(found)


@pytest.fixture(scope="module")
def cut(filled: FilledLake) -> dict[str, list[Row]]:
    """What the pipeline made of the good clips and the bad ones."""
    return windows_by_clip(filled.lake)


def test_every_clip_has_an_outcome_in_its_rows(cut: dict[str, list[Row]], filled: FilledLake) -> None:
    assert set(cut) == {path.name for path in filled.clips.iterdir()}
    assert {name: [row.window_status for row in rows] for name, rows in cut.items()} == {
        "one window.mp4": ["success"],
        "three windows ü.mkv": ["success"] * 3,
        "upright #1.mov": ["success"],
        "broken 100%.ts": ["partial"] * 2,
        "too short.mp4": ["skipped"],
        "sound only.m4a": ["error"],
        "playlist.mp4": ["error"],
        "empty.mp4": ["error"],
        "text.mp4": ["error"],
        "dangling.mp4": ["error"],
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("too short.mp4", "3 frames, fewer than the 4"),
        ("sound only.m4a", "no video stream"),
        ("playlist.mp4", "not a video"),
        ("text.mp4", "not a video"),
        ("empty.mp4", "empty"),
        ("dangling.mp4", "does not exist"),
    ],
)
def test_a_clip_without_a_window_says_why(cut: dict[str, list[Row]], name: str, reason: str) -> None:
    (row,) = cut[name]
    assert reason in row.window_error
    assert row.window_index is None
    assert row.frame_indices is None
    assert row.start_frame is None


def test_a_window_says_which_frames_it_holds_and_when_they_are_shown(cut: dict[str, list[Row]]) -> None:
    rows = cut["three windows ü.mkv"]
    assert [(row.window_index, row.start_frame, row.end_frame) for row in rows] == [
        (0, 0, 19),
        (1, 20, 39),
        (2, 40, 59),
    ]
    for row in rows:
        assert row.num_frames == WINDOW_FRAMES
        assert row.window_error is None
        assert (row.width, row.height, row.video_codec) == (96, 64, "mpeg4")
        assert row.frame_rate == pytest.approx(30)
        assert row.start_s == pytest.approx(row.start_frame / 30, abs=0.002)
        assert row.end_s == pytest.approx(row.end_frame / 30, abs=0.002)
        assert row.frame_indices == sorted(set(row.frame_indices))
        assert (row.frame_indices[0], row.frame_indices[-1]) == (row.start_frame, row.end_frame)
        assert row.frame_times_s == pytest.approx([at / 30 for at in row.frame_indices], abs=0.002)
        assert row.window_id == window_uuid(
            row.clip_id, row.content_id, start_frame=row.start_frame, end_frame=row.end_frame
        )


def test_a_rotated_clip_is_as_wide_as_it_is_shown(cut: dict[str, list[Row]]) -> None:
    (row,) = cut["upright #1.mov"]
    assert (row.width, row.height) == (96, 64)


def test_a_clip_that_breaks_keeps_what_comes_before(cut: dict[str, list[Row]]) -> None:
    first, last = cut["broken 100%.ts"]
    assert (first.start_frame, first.end_frame, last.start_frame) == (0, 19, 20)
    assert "corrupt" in last.window_error


def test_ids_name_rows_once_and_point_to_the_config(cut: dict[str, list[Row]], filled: FilledLake) -> None:
    rows = [row for rows in cut.values() for row in rows]
    assert len({row.window_id for row in rows}) == len(rows)
    assert {row.prep_config_id for row in rows} == {prep_config(filled.settings).config_id}
    assert {row.run_id for row in rows} == {filled.report.run_id}


def test_work_goes_on_where_it_stands(
    filled: FilledLake, tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    """Nothing twice; a changed clip alone; an error when it is asked for; another rule beside the old."""
    copy = filled.copy(tmp_path)
    spark, lake, settings = copy.lake.spark, copy.lake, copy.settings
    before = windows_by_clip(lake)
    assert windows.run(spark, settings).counts == {}

    # The lake's clips lie in the folder of the fixture; this one is the test's own and changes.
    clip = media_maker.make_clip(tmp_path / "mine.mp4", num_frames=8)
    mine = make_settings(input_path=(str(clip), str(tmp_path / "late.mp4")))
    (tmp_path / "late.mp4").symlink_to("not there yet")
    ingest_clips(lake, mine)
    assert run_alone(lake, settings, windows.STAGE) == {"windows.success": 1, "windows.error": 1}
    assert windows_by_clip(lake) == before | windows_by_clip(lake, "clip_no >= 10")
    first = windows_by_clip(lake)["mine.mp4"]

    media_maker.make_clip(clip, num_frames=44)
    ingest_clips(lake, mine)
    assert run_alone(lake, settings, windows.STAGE) == {"windows.success": 2}
    second = windows_by_clip(lake)["mine.mp4"]
    assert [(row.start_frame, row.end_frame) for row in second] == [(0, 19), (20, 43)]
    assert not {row.window_id for row in first} & {row.window_id for row in second}

    (tmp_path / "late.mp4").unlink()
    (tmp_path / "late.mp4").symlink_to("mine.mp4")
    chosen = "window_error LIKE '%late.mp4%'"
    settings_of_windows = make_settings(**_flags(settings))
    counts = retry.retry(spark, settings_of_windows, where=chosen).counts
    assert {name: n for name, n in counts.items() if name.startswith("windows")} == {"windows.success": 2}
    late = windows_by_clip(lake)["late.mp4"]
    assert [(row.attempt, row.window_status) for row in late] == [
        (1, "error"),
        (2, "success"),
        (2, "success"),
    ]
    assert retry.retry(spark, settings_of_windows, where=chosen).counts == {}

    other_rule = make_settings(**_flags(settings) | {"captioning_window_size": 12})
    counts = run_alone(lake, other_rule, windows.STAGE)
    assert sum(counts.values()) > 10
    assert windows_by_clip(lake, f"prep_config_id = '{prep_config(settings).config_id}'") == (
        before
        | windows_by_clip(lake, f"clip_no >= 10 AND prep_config_id = '{prep_config(settings).config_id}'")
    )


def _flags(settings: Settings) -> dict[str, object]:
    preparation = settings.caption_preparation
    return {
        "captioning_window_size": preparation.window_size,
        "captioning_remainder_threshold": preparation.remainder_threshold,
    }


def test_clips_in_the_table_itself_are_cut_like_files(
    filled: FilledLake, lake: Lake, make_settings: Callable[..., Settings]
) -> None:
    places = tuple(str(filled.clips / name) for name in ("one window.mp4", "empty.mp4", "text.mp4"))
    settings = make_settings(input_path=places, ingest_mode="value", **_flags(filled.settings))
    ingest_clips(lake, settings)
    assert run_alone(lake, settings, windows.STAGE) == {"windows.success": 1, "windows.error": 2}
    (row,) = windows_by_clip(lake)["one window.mp4"]
    (by_reference,) = windows_by_clip(filled.lake)["one window.mp4"]
    same = ("window_id", "clip_id", "frame_indices", "frame_times_s", "frame_rate", "prep_config_id")
    assert [row[name] for name in same] == [by_reference[name] for name in same]
    assert "0 bytes" in windows_by_clip(lake)["empty.mp4"][0].window_error
