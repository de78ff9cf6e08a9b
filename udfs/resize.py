"""The size at which the model sees a frame, and the resizing to it."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.errors import ClipError
from conf.variants import ModelVariant

MAX_ASPECT_RATIO = 200
"""The longer side of a frame is at most this many times the shorter one."""

FRAMES_PER_PATCH = 2
"""The models merge this many frames in time, so that two frames cost one."""


def fit_size(height: int, width: int, *, num_frames: int, variant: ModelVariant) -> tuple[int, int]:
    """Returns height and width at which the model sees the frames of a window.

    Both are multiples of the patch, close to the given shape, and within the budget of pixels for one
    frame and for all together. The rule is that of `qwen_vl_utils`' `fetch_video` and `smart_resize`.

    >>> from conf.variants import QWEN25
    >>> fit_size(720, 1280, num_frames=18, variant=QWEN25)
    (560, 1008)

    Args:
        height: of the displayed frame, in pixels.
        width: of the displayed frame, in pixels.
        num_frames: number of sampled frames of the window.
        variant: the model that will see them.

    Raises:
        ClipError: one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ClipError(f"frames of {width}x{height} are too long: at most {MAX_ASPECT_RATIO} to 1")
    patch = variant.patch_px
    min_pixels = variant.min_patches * patch**2
    max_pixels = max_frame_pixels(num_frames, variant)
    fitted = (_round_to(height, patch), _round_to(width, patch))
    if fitted[0] * fitted[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return _floor_to(height / shrink, patch), _floor_to(width / shrink, patch)
    if fitted[0] * fitted[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return _ceil_to(height * grow, patch), _ceil_to(width * grow, patch)
    return fitted


def max_frame_pixels(num_frames: int, variant: ModelVariant) -> float:
    """Returns how many pixels one of `num_frames` frames may cover.

    >>> from conf.variants import QWEN25
    >>> max_frame_pixels(18, QWEN25), max_frame_pixels(128, QWEN25), max_frame_pixels(768, QWEN25)
    (602112, 301056.0, 105369)
    """
    patch_pixels = variant.patch_px**2
    share = variant.total_patches * patch_pixels / num_frames * FRAMES_PER_PATCH
    least = int(variant.min_patches * patch_pixels * 1.05)
    return max(min(variant.max_patches * patch_pixels, share), least)


def resize_frame(
    frame: npt.NDArray[np.uint8], height: int, width: int, *, out: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Resizes one frame as the models' processors do: bicubic with antialiasing, on uint8.

    Args:
        frame: uint8 (H, W, 3).
        height: new height in pixels.
        width: new width in pixels.
        out: uint8 (height, width, 3), contiguous, which takes the result; of another shape it is left alone.

    Returns:
        uint8 (height, width, 3), contiguous; the frame itself when it has that size already, else `out`
        where it is of that size.
    """
    if frame.shape[:2] == (height, width):
        return frame
    import torch

    if out is None or out.shape != (height, width, 3):
        out = np.empty((height, width, 3), np.uint8)
    # `interpolate` calls the same operator, but has no `out`.
    resize = torch.ops.aten._upsample_bicubic2d_aa.out
    resize(_planes(frame), (height, width), False, None, None, out=_planes(out))
    return out


def _planes(picture: npt.NDArray[np.uint8]) -> Any:
    """A picture as a batch for torch, in the same memory.

    A batch made before its axes are swapped: only then torch writes the colours of a pixel side by side,
    which takes a third of the time.
    """
    import torch

    return torch.from_numpy(np.ascontiguousarray(picture))[None].permute(0, 3, 1, 2)


def _round_to(pixels: float, patch: int) -> int:
    return max(patch, round(pixels / patch) * patch)


def _floor_to(pixels: float, patch: int) -> int:
    return max(patch, math.floor(pixels / patch) * patch)


def _ceil_to(pixels: float, patch: int) -> int:
    return math.ceil(pixels / patch) * patch
