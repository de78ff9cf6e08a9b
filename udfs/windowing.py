"""Which frames make a window, and which of them the model sees.

The rule is that of NeMo Curator's `compute_windows` and `qwen_vl_utils`' frame sampling. It knows
nothing of video: it works on a number of frames and a frame rate.
"""

from dataclasses import dataclass

import numpy as np

MIN_FRAMES = 4
"""A window, and the sample taken from it, has at least this many frames."""

MAX_SAMPLED_FRAMES = 768
"""At most this many frames of one window are sampled."""


@dataclass(frozen=True)
class PlannedWindow:
    """One window of a clip; frames are counted from 0 over the whole clip.

    Attributes:
        start_frame: first frame of the window.
        end_frame: last frame of the window, inclusive.
        frame_indices: the sampled frames in ascending order, from `start_frame` to `end_frame`; beyond
            frame 4096 float32 may make the rule pick one twice.
    """

    start_frame: int
    end_frame: int
    frame_indices: tuple[int, ...]


def plan_windows(
    total_frames: int,
    frame_rate: float,
    *,
    sampling_fps: float = 2.0,
    window_size: int = 256,
    remainder_threshold: int = 128,
) -> list[PlannedWindow]:
    """Cuts a clip into windows and samples each of them.

    >>> plan_windows(5, 30.0)
    [PlannedWindow(start_frame=0, end_frame=4, frame_indices=(0, 1, 3, 4))]

    Args:
        total_frames: number of frames of the clip.
        frame_rate: frames per second of the clip, above 0.
        sampling_fps: frames per second that the model sees.
        window_size: frames of a full window, at least 4.
        remainder_threshold: least number of left-over frames that make a window of their own;
            fewer lengthen the last window.

    Returns:
        The windows in order, without gap or overlap; none below 4 frames.

    Raises:
        ValueError: `window_size` is below 4, or `frame_rate` or `sampling_fps` is not above 0.
    """
    if window_size < MIN_FRAMES:
        raise ValueError(f"window_size={window_size}: it must be at least {MIN_FRAMES}")
    if not (frame_rate > 0 and sampling_fps > 0):
        raise ValueError(f"frame_rate={frame_rate} and sampling_fps={sampling_fps} must be above 0")
    spans = window_spans(total_frames, window_size=window_size, remainder_threshold=remainder_threshold)
    return [
        PlannedWindow(start, end, sample_frames(start, end, frame_rate, sampling_fps=sampling_fps))
        for start, end in spans
    ]


def window_spans(
    total_frames: int, *, window_size: int = 256, remainder_threshold: int = 128
) -> list[tuple[int, int]]:
    """Returns first and last frame (inclusive) of each window.

    >>> window_spans(384)
    [(0, 255), (256, 383)]
    >>> window_spans(383)
    [(0, 382)]
    """
    if total_frames < MIN_FRAMES:
        return []
    num_full, remainder = divmod(total_frames, window_size)
    starts = [i * window_size for i in range(num_full)] or [0]
    # Fewer than MIN_FRAMES can't be sampled, whatever the threshold says (our one deviation).
    if num_full and remainder >= max(remainder_threshold, MIN_FRAMES):
        starts.append(num_full * window_size)
    ends = [start - 1 for start in starts[1:]] + [total_frames - 1]
    return list(zip(starts, ends, strict=True))


def sample_frames(
    start_frame: int, end_frame: int, frame_rate: float, *, sampling_fps: float = 2.0
) -> tuple[int, ...]:
    """Returns the sampled frames of one window.

    >>> sample_frames(0, 4, 30.0)
    (0, 1, 3, 4)
    """
    num_sampled = sampled_count(end_frame - start_frame + 1, frame_rate, sampling_fps=sampling_fps)
    return spaced_frames(start_frame, end_frame, num_sampled)


def sampled_count(num_frames: int, frame_rate: float, *, sampling_fps: float = 2.0) -> int:
    """Returns how many frames of a window are sampled: an even number.

    >>> sampled_count(256, 30.0)
    18
    """
    most = min(MAX_SAMPLED_FRAMES, num_frames) // 2 * 2
    wanted = num_frames / frame_rate * sampling_fps
    # Clamped first: the quotient can be infinite for a frame rate next to nothing.
    wanted_even = 2 * round(min(wanted, 2.0 * MAX_SAMPLED_FRAMES) / 2)
    return min(max(wanted_even, MIN_FRAMES), most)


def spaced_frames(start_frame: int, end_frame: int, num_sampled: int) -> tuple[int, ...]:
    """Returns `num_sampled` evenly spaced frame numbers, the first and the last frame included.

    The step is a float32, and each point is rounded to float32 once, as the fused multiply-add of
    `torch.linspace` does: float64, a rounded product, or starting at 0 and shifting afterwards pick
    other frames.

    >>> spaced_frames(0, 127, 8)
    (0, 18, 36, 54, 73, 91, 109, 127)
    """
    step = np.float32(end_frame - start_frame) / np.float32(num_sampled - 1)
    i = np.arange(num_sampled)
    # A float32 times a small integer is exact in float64, so only the last cast rounds.
    from_start = start_frame + np.float64(step) * i
    from_end = end_frame - np.float64(step) * (num_sampled - 1 - i)
    points = np.where(i < num_sampled // 2, from_start, from_end).astype(np.float32)
    return tuple(int(p) for p in np.rint(points))
