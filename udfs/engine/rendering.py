"""From a request to what vLLM renders: chat text, frames, and their real times.

Everything here is a rule about Qwen's models; nothing imports vLLM. Torch is imported only to rescale
and normalize in another type than the processor's own.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.engine import RenderSettings
from udfs.engine.requests import CaptionRequest, TextRequest

TEMPORAL_PATCH = 2
VIDEO_PLACEHOLDER = "<|vision_start|><|video_pad|><|vision_end|>"
BARE_VIDEO_PLACEHOLDER = "<|video_pad|>"
MILLISECONDS_PER_S = 1000
# Times of a video are floored to a grid by the model; a spacing this close to a multiple of a
# millisecond is that multiple, whatever the rounding of its floating point numbers says.
SNAP_S = 1e-6


class RenderError(ValueError):
    """Raised when a request cannot be rendered; becomes the row's error."""


def caption_messages(prompt: str) -> list[dict[str, Any]]:
    """Returns the conversation that asks `prompt` about one video; the video comes first."""
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}]


def second_prompt(prompt: str, stage2_prompt: str, first_caption: str) -> str:
    """Returns what the second pass over a video asks.

    The first question stays in front: it says what kind of caption is wanted, and a second prompt that goes
    on where the first one ended finds the video, which stands before both, in vLLM's prefix cache. Without
    at least a block of equal tokens behind the video, the vision tower would have to see it again.

    Args:
        prompt: of the first pass.
        stage2_prompt: with what parts it from the caption.
        first_caption: what the first pass said.
    """
    return f"{prompt}\n\n{stage2_prompt}{first_caption}"


def text_messages(request: TextRequest) -> list[dict[str, Any]]:
    """Returns the conversation of a text request."""
    system = [] if request.system is None else [{"role": "system", "content": request.system}]
    return [*system, {"role": "user", "content": request.prompt}]


def chat_text(template: Any, messages: list[dict[str, Any]]) -> str:
    """Returns `messages` as the checkpoint's chat template writes them, open for the answer.

    Args:
        template: a tokenizer or processor of transformers.
        messages: the conversation.
    """
    # Qwen3's text models think aloud unless told not to; other templates ignore the switch.
    text = template.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return str(text)


def check_caption_request(request: CaptionRequest, render: RenderSettings) -> None:
    """Raises RenderError when the model could not take `request`."""
    if not request.prompt.strip():
        raise RenderError("the prompt is empty")
    _, height, width, _ = request.frames.shape
    if not render.model_does_preprocess and (height % render.patch_px or width % render.patch_px):
        raise RenderError(
            f"frames of {width}x{height} pixels are not of the model's size: sides must be multiples of "
            f"{render.patch_px}"
        )


def check_text_request(request: TextRequest) -> None:
    """Raises RenderError when the model could not take `request`."""
    if not request.prompt.strip():
        raise RenderError("the prompt is empty")


def average_fps(times_s: npt.NDArray[np.float64]) -> float:
    """Returns the rate from which Qwen2.5-VL computes the seconds that two frames cover.

    The processor turns the rate into `2 / rate` seconds, and the model floors multiples of that, so a
    rate that is a hair too large would put every frame one position too early.

    Args:
        times_s: ascending times in seconds, shape (n,).

    Example:
        >>> average_fps(np.array([0.0, 0.5, 1.0, 1.5]))
        2.0
    """
    span_s = float(times_s[-1] - times_s[0])
    if len(times_s) < 2 or span_s <= 0:
        return float(MILLISECONDS_PER_S)
    grid_s = TEMPORAL_PATCH * span_s / (len(times_s) - 1)
    snapped_s = round(grid_s, 3)
    if abs(grid_s - snapped_s) < SNAP_S and snapped_s > 0:
        grid_s = snapped_s
    fps = TEMPORAL_PATCH / grid_s
    while TEMPORAL_PATCH / fps < grid_s:
        fps = math.nextafter(fps, 0.0)
    return fps


def video_inputs(
    model_type: str, times_s: npt.NDArray[np.float64]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Returns how the real times of the frames are told to vLLM.

    Args:
        model_type: "qwen2_5_vl" or "qwen3_vl", as in the checkpoint's `config.json`.
        times_s: ascending times in seconds, shape (n,); the first one becomes 0.

    Returns:
        The metadata that goes into the tuple beside the frames, and the keyword arguments of the
        processor.

    Raises:
        RenderError: for a model of another type.
    """
    num_frames = len(times_s)
    if model_type == "qwen2_5_vl":
        fps = average_fps(times_s)
        metadata = {"fps": fps, "frames_indices": list(range(num_frames)), "total_num_frames": num_frames}
        return None, {"fps": fps, "video_metadata": metadata}
    if model_type == "qwen3_vl":
        milliseconds = np.rint((times_s - times_s[0]) * MILLISECONDS_PER_S).astype(int).tolist()
        return {
            "fps": float(MILLISECONDS_PER_S),
            "frames_indices": milliseconds,
            "total_num_frames": num_frames,
            "do_sample_frames": False,
        }, {}
    raise RenderError(f"models of type {model_type!r} are not supported; qwen2_5_vl and qwen3_vl are")


def size_limits(model_type: str, num_frames: int, render: RenderSettings) -> dict[str, int]:
    """Returns the pixel limits of a video whose frames the processor resizes.

    The budget is that of `fetch_video` in `qwen_vl_utils`: a frame may have `max_patches`, but all
    frames together no more than `total_patches`. Qwen2.5's processor takes limits of a frame, Qwen3's
    limits of the whole video.
    """
    shared = render.total_patches / num_frames * TEMPORAL_PATCH
    greatest = max(min(render.max_patches, shared), 1.05 * render.min_patches)
    area = render.patch_px**2 * (num_frames if model_type == "qwen3_vl" else 1)
    return {"shortest_edge": render.min_patches * area, "longest_edge": int(greatest * area)}


def allows_bytes(render: RenderSettings) -> bool:
    """Whether frames may travel to the model as `uint8`: they have its size, and it may normalize them."""
    return not render.model_does_preprocess and render.preprocess_dtype == "float32"


def processor_switches(
    model_type: str, num_frames: int, render: RenderSettings, *, as_bytes: bool
) -> dict[str, Any]:
    """Returns which steps the model's processor still has to do.

    Args:
        model_type: of the checkpoint.
        num_frames: of the video.
        render: how frames are prepared.
        as_bytes: whether the model itself rescales and normalizes `uint8` pixels.
    """
    if render.model_does_preprocess:
        return {"do_resize": True, "size": size_limits(model_type, num_frames, render)}
    if render.preprocess_dtype == "float32" and not as_bytes:
        return {"do_resize": False}
    return {"do_resize": False, "do_rescale": False, "do_normalize": False}


def pixels(
    frames: npt.NDArray[np.uint8], render: RenderSettings, *, mean: Sequence[float], std: Sequence[float]
) -> Any:
    """Returns the frames as the processor takes them.

    Args:
        frames: `uint8` (n, height, width, 3).
        render: tells who rescales and normalizes, and in which type.
        mean: of each channel, of values between 0 and 1.
        std: standard deviation of each channel.

    Returns:
        The frames themselves, or values of `preprocess_dtype` in a `float32` array (n, 3, height,
        width): numpy, through which vLLM passes videos, has no bfloat16, and float32 holds them exactly.
    """
    if render.model_does_preprocess or render.preprocess_dtype == "float32":
        return frames
    import torch

    dtype = torch.float16 if render.preprocess_dtype == "float16" else torch.bfloat16
    shape = (1, 3, 1, 1)
    unit = torch.from_numpy(frames).permute(0, 3, 1, 2).to(dtype) / 255
    normal = (unit - torch.tensor(mean, dtype=dtype).view(shape)) / torch.tensor(std, dtype=dtype).view(shape)
    return normal.float().numpy()


def video_prompt(
    request: CaptionRequest,
    render: RenderSettings,
    *,
    text: str,
    model_type: str,
    mean: Sequence[float],
    std: Sequence[float],
    as_bytes: bool,
    cache_key: str,
) -> dict[str, Any]:
    """Returns the prompt that vLLM's renderer takes for one pass over a video.

    Args:
        request: what was asked.
        render: how frames are prepared.
        text: the whole prompt text with one video placeholder.
        model_type: of the checkpoint.
        mean: of the processor's channels.
        std: of the processor's channels.
        as_bytes: whether the model itself rescales and normalizes `uint8` pixels.
        cache_key: equal for passes over the same video, so that the second one finds the first one's
            work in vLLM's caches. vLLM trusts it, so no two videos may share it.
    """
    metadata, kwargs = video_inputs(model_type, request.times_s)
    video = pixels(request.frames, render, mean=mean, std=std)
    kwargs |= processor_switches(model_type, len(request.frames), render, as_bytes=as_bytes)
    return {
        "prompt": text,
        "multi_modal_data": {"video": [(video, metadata)]},
        "mm_processor_kwargs": kwargs,
        "multi_modal_uuids": {"video": [cache_key]},
    }
