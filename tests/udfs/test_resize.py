"""Frame sizes: another size than the reference's changes tokens, positions and captions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import ClipError
from conf.variants import DEMO, QWEN3, QWEN25, ModelVariant
from demo.make_clips import draw_scene
from udfs.resize import fit_size, max_frame_pixels, resize_frame


@pytest.mark.parametrize(
    ("height", "width", "num_frames", "variant", "expected"),
    [
        # 768 patches of 28x28 = 602,112 pixels; 720 / 1.2372 = 582.0, 1280 / 1.2372 = 1034.6.
        (720, 1280, 18, QWEN25, (560, 1008)),
        (1280, 720, 18, QWEN25, (1008, 560)),
        (2160, 3840, 18, QWEN25, (560, 1008)),
        # 480 / 28 = 17.1, 854 / 28 = 30.5 to even 30: 401,.. pixels, within both bounds.
        (480, 854, 18, QWEN25, (476, 840)),
        # 128 frames share 24,576: 384 patches each = 301,056; 480 / 1.1669 = 411.4, 854 / 1.1669 = 731.9.
        (480, 854, 128, QWEN25, (392, 728)),
        # 768 frames: 64 patches each is below 1.05 times the least, so 134.4 patches = 105,369.6 pixels.
        (720, 1280, 768, QWEN25, (224, 420)),
        # 128 patches = 100,352 pixels; 64 * 4.0415 = 258.7, 96 * 4.0415 = 388.0, rounded up.
        (64, 96, 4, QWEN25, (280, 392)),
        # 768 patches of 32x32 = 786,432; 720 / 1.0825 = 665.1, 1280 / 1.0825 = 1182.4.
        (720, 1280, 18, QWEN3, (640, 1152)),
        # 64 patches of 28x28 = 50,176; 240 / 1.2372 = 194.0, 320 / 1.2372 = 258.7.
        (240, 320, 20, DEMO, (168, 252)),
    ],
)
def test_size_is_that_of_the_reference_rule(
    height: int, width: int, num_frames: int, variant: ModelVariant, expected: tuple[int, int]
) -> None:
    assert fit_size(height, width, num_frames=num_frames, variant=variant) == expected


@given(
    st.integers(16, 4320),
    st.integers(16, 7680),
    st.integers(4, 768),
    st.sampled_from([QWEN25, QWEN3, DEMO]),
)
def test_size_is_in_whole_patches_and_within_budget(
    height: int, width: int, num_frames: int, variant: ModelVariant
) -> None:
    if max(height, width) > 20 * min(height, width):
        return
    fitted = fit_size(height, width, num_frames=num_frames, variant=variant)
    least = variant.min_patches * variant.patch_px**2
    assert [side % variant.patch_px for side in fitted] == [0, 0]
    assert fitted[0] * fitted[1] >= 0.6 * least
    # A small frame grows by whole patches, which may overshoot.
    if height * width > 2 * least:
        assert fitted[0] * fitted[1] <= max_frame_pixels(num_frames, variant)


def test_a_frame_like_a_thread_is_a_row_error() -> None:
    with pytest.raises(ClipError, match="200 to 1"):
        fit_size(4, 802, num_frames=4, variant=QWEN25)


def test_resizing_equals_the_processors_interpolation() -> None:
    torch = pytest.importorskip("torch")
    picture = draw_scene(3, num_frames=10, size=(321, 241), seed=1)
    resized = resize_frame(picture, 168, 252)
    planes = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    exact = torch.nn.functional.interpolate(planes, (168, 252), mode="bicubic", antialias=True)
    difference = np.abs(resized - exact[0].clamp(0, 255).permute(1, 2, 0).numpy())
    assert resized.shape == (168, 252, 3)
    assert resized.dtype == np.uint8
    assert resized.flags.c_contiguous
    # uint8 rounds once in each direction and uses fixed-point weights.
    assert difference.max() < 2.5
    assert difference.mean() < 0.5


def test_a_frame_of_the_right_size_is_not_touched() -> None:
    picture = draw_scene(0, num_frames=10, size=(84, 56), seed=0)
    assert resize_frame(picture, 56, 84) is picture


def test_a_frame_is_resized_to_where_it_is_wanted_without_touching_its_neighbours() -> None:
    pytest.importorskip("torch")
    picture = draw_scene(3, num_frames=10, size=(321, 241), seed=1)
    window = np.full((3, 168, 252, 3), 7, np.uint8)
    resized = resize_frame(picture, 168, 252, out=window[1])
    assert resized.base is window
    np.testing.assert_array_equal(window[1], resize_frame(picture, 168, 252))
    assert np.all(window[[0, 2]] == 7)


def test_memory_of_another_size_is_not_used_for_a_resized_frame() -> None:
    pytest.importorskip("torch")
    picture = draw_scene(3, num_frames=10, size=(321, 241), seed=1)
    place = np.full((100, 100, 3), 7, np.uint8)
    np.testing.assert_array_equal(resize_frame(picture, 168, 252, out=place), resize_frame(picture, 168, 252))
    assert np.all(place == 7)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (97, 65), (252, 168), (300, 401)])
def test_resizing_is_bit_by_bit_what_torch_interpolates(height: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    picture = draw_scene(3, num_frames=10, size=(321, 241), seed=1)
    planes = torch.from_numpy(picture)[None].permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    np.testing.assert_array_equal(resize_frame(picture, height, width), expected[0].permute(1, 2, 0).numpy())
