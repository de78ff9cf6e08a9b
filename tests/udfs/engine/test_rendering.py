"""Wrong times make a fast motion slow; wrong limits make the model see another picture size."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.engine import RenderSettings
from conf.variants import DEMO, QWEN3, QWEN25
from tests.udfs.engine.requests_maker import caption_request, colour_frames
from udfs.engine import rendering
from udfs.engine.rendering import RenderError

QWEN25_RENDER = RenderSettings.of_variant(QWEN25)


@pytest.mark.parametrize("spacing_s", [0.5, 0.25, 1 / 3, 1 / 30, 0.4, 0.1, 0.07, 1.0, 2.0, 0.501])
@pytest.mark.parametrize("num_frames", [2, 5, 18, 64])
def test_the_rate_gives_the_real_spacing_and_never_a_position_too_early(
    spacing_s: float, num_frames: int
) -> None:
    fps = rendering.average_fps(7.3 + spacing_s * np.arange(num_frames))
    grid_s = rendering.TEMPORAL_PATCH / fps
    assert grid_s == pytest.approx(2 * spacing_s, abs=1e-6)
    exact = round(2 * spacing_s, 9)
    for step in range(40):
        assert math.floor(step * np.float32(grid_s) * 2) >= math.floor(step * exact * 2 - 1e-6)


@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=40))
def test_uneven_times_give_their_average(steps: list[float]) -> None:
    times_s = np.cumsum([0.0, *steps])
    assert rendering.average_fps(times_s) == pytest.approx(len(steps) / times_s[-1], rel=0.01)


@pytest.mark.parametrize("times_s", [[1.0], [2.0, 2.0]])
def test_times_without_a_span_are_no_division_by_zero(times_s: list[float]) -> None:
    assert math.isfinite(rendering.average_fps(np.array(times_s)))


def test_qwen3_is_told_each_time_in_milliseconds_from_the_first_frame() -> None:
    metadata, kwargs = rendering.video_inputs("qwen3_vl", np.array([10.0, 10.0334, 11.5]))
    assert metadata == {
        "fps": 1000.0,
        "frames_indices": [0, 33, 1500],
        "total_num_frames": 3,
        "do_sample_frames": False,
    }
    assert kwargs == {}


def test_a_model_that_nobody_tried_is_refused_by_name() -> None:
    with pytest.raises(RenderError, match="llava"):
        rendering.video_inputs("llava", np.arange(4.0))


@pytest.mark.parametrize(("num_frames", "patches"), [(4, 768), (18, 768), (64, 768), (128, 384), (768, 134)])
def test_pixel_limits_share_the_budget_of_a_window(num_frames: int, patches: int) -> None:
    limits = rendering.size_limits("qwen2_5_vl", num_frames, QWEN25_RENDER)
    assert limits["shortest_edge"] == 128 * 28 * 28
    assert limits["longest_edge"] // (28 * 28) == patches


def test_qwen3_takes_the_limits_of_all_frames_together() -> None:
    limits = rendering.size_limits("qwen3_vl", 10, RenderSettings.of_variant(QWEN3))
    assert limits == {"shortest_edge": 128 * 32 * 32 * 10, "longest_edge": 768 * 32 * 32 * 10}


@pytest.mark.parametrize(
    ("render", "as_bytes", "switches"),
    [
        ({}, False, {"do_resize": False}),
        ({}, True, {"do_resize": False, "do_rescale": False, "do_normalize": False}),
        (
            {"preprocess_dtype": "bfloat16"},
            False,
            {"do_resize": False, "do_rescale": False, "do_normalize": False},
        ),
        (
            {"model_does_preprocess": True, "preprocess_dtype": "bfloat16"},
            False,
            {"do_resize": True, "size": {"shortest_edge": 100352, "longest_edge": 602112}},
        ),
    ],
)
def test_each_step_is_done_once(
    render: dict[str, object], as_bytes: bool, switches: dict[str, object]
) -> None:
    settings = RenderSettings(**render)
    assert rendering.processor_switches("qwen2_5_vl", 8, settings, as_bytes=as_bytes) == switches


@pytest.mark.parametrize(
    ("render", "allowed"),
    [({}, True), ({"preprocess_dtype": "bfloat16"}, False), ({"model_does_preprocess": True}, False)],
)
def test_frames_may_travel_as_bytes_unless_somebody_else_is_to_prepare_them(
    render: dict[str, object], allowed: bool
) -> None:
    assert rendering.allows_bytes(RenderSettings(**render)) is allowed


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_pixels_are_rescaled_and_normalized_in_the_type_asked_for(dtype: str) -> None:
    frames = colour_frames(1)
    mean, std = [0.48, 0.45, 0.40], [0.26, 0.27, 0.28]
    got = rendering.pixels(frames, RenderSettings(preprocess_dtype=dtype), mean=mean, std=std)
    exact = (frames.transpose(0, 3, 1, 2) / 255 - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(
        std, (1, 3, 1, 1)
    )
    assert got.dtype == np.float32
    assert 0 < np.abs(got - exact).max() < (0.003 if dtype == "float16" else 0.03)
    assert (got.view(np.uint32) & (0x1FFF if dtype == "float16" else 0xFFFF) == 0).all()


def test_the_video_comes_before_the_text() -> None:
    (message,) = rendering.caption_messages("what happens?")
    assert [part["type"] for part in message["content"]] == ["video", "text"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"prompt": " \n"}, "prompt is empty"), ({"frames": colour_frames(0, 6, 100, 100)}, "100x100")],
)
def test_what_the_model_cannot_take_is_refused_with_a_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(RenderError, match=reason):
        rendering.check_caption_request(caption_request("w", **changes), RenderSettings.of_variant(DEMO))
