"""The window and sampling rule: a wrong pick captions moments that the reference never saw."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.windowing import MIN_FRAMES, plan_windows, sampled_count, spaced_frames

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "windows.json").read_text()
)

clips = {
    "total_frames": st.integers(0, 5_000),
    "frame_rate": st.floats(0.5, 240.0),
    "sampling_fps": st.floats(0.1, 60.0),
    "window_size": st.integers(MIN_FRAMES, 20_000),
    "remainder_threshold": st.integers(0, 20_000),
}


def test_there_are_as_many_vectors_as_the_contract_says() -> None:
    assert len(VECTORS) == 241


@pytest.mark.parametrize("case", VECTORS, ids=range(len(VECTORS)))
def test_windows_and_picks_equal_the_reference(case: dict[str, Any]) -> None:
    windows = plan_windows(
        case["total_frames"],
        case["video_fps"],
        sampling_fps=case["sampling_fps"],
        window_size=case["window_size"],
        remainder_threshold=case["remainder_threshold"],
    )
    got = [
        {
            "start_frame": w.start_frame,
            "end_frame": w.end_frame,
            "num_sampled": len(w.frame_indices),
            "frame_indices": list(w.frame_indices),
        }
        for w in windows
    ]
    assert got == case["windows"]


@given(**clips)
def test_windows_cover_every_frame_exactly_once(total_frames: int, frame_rate: float, **rule: Any) -> None:
    windows = plan_windows(total_frames, frame_rate, **rule)
    if total_frames < MIN_FRAMES:
        assert windows == []
        return
    assert windows[0].start_frame == 0
    assert windows[-1].end_frame == total_frames - 1
    for window, following in itertools.pairwise(windows):
        assert window.end_frame + 1 == following.start_frame
        assert window.end_frame - window.start_frame + 1 == rule["window_size"]


@given(**clips)
def test_no_window_is_too_short_to_sample_or_longer_than_the_rule_allows(
    total_frames: int, frame_rate: float, **rule: Any
) -> None:
    size, threshold = rule["window_size"], rule["remainder_threshold"]
    for window in plan_windows(total_frames, frame_rate, **rule):
        length = window.end_frame - window.start_frame + 1
        assert MIN_FRAMES <= length < size + min(size, max(threshold, MIN_FRAMES))


@given(**clips)
def test_samples_are_even_in_number_ascending_and_span_their_window(
    total_frames: int, frame_rate: float, **rule: Any
) -> None:
    for window in plan_windows(total_frames, frame_rate, **rule):
        picks = window.frame_indices
        assert len(picks) % 2 == 0
        assert MIN_FRAMES <= len(picks) <= min(768, window.end_frame - window.start_frame + 1)
        assert list(picks) == sorted(picks)
        # Far into a long clip float32 is so coarse that the rule may pick a frame twice.
        assert len(set(picks)) == len(picks) or window.end_frame >= 4096
        assert (picks[0], picks[-1]) == (window.start_frame, window.end_frame)


@pytest.mark.parametrize(("num_frames", "expected"), [(4, 4), (5, 4), (90, 6), (75, 4), (105, 8), (768, 52)])
def test_count_is_rounded_half_to_even(num_frames: int, expected: int) -> None:
    assert sampled_count(num_frames, 30.0) == expected


def test_a_frame_rate_next_to_nothing_hits_the_cap_instead_of_overflowing() -> None:
    assert sampled_count(100_000, 5e-324) == 768
    assert sampled_count(10, 5e-324, sampling_fps=1e308) == 10


def test_far_windows_are_computed_on_absolute_frame_numbers() -> None:
    # Computing from 0 and shifting, or rounding the product before the sum, gets these wrong.
    assert spaced_frames(40_000, 43_319, 768)[301] == 41_303
    relative = tuple(20_000 + i for i in spaced_frames(0, 19_999, 768))
    assert spaced_frames(20_000, 39_999, 768) != relative


def test_a_frame_that_the_rule_picks_twice_is_picked_twice() -> None:
    picks = spaced_frames(16_077, 16_775, 698)
    assert (picks[348], picks[349]) == (16_426, 16_426)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_size": 3},
        {"frame_rate": 0.0},
        {"frame_rate": float("nan")},
        {"sampling_fps": 0.0},
    ],
)
def test_settings_that_have_no_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plan_windows(100, **{"frame_rate": 30.0, **wrong})
