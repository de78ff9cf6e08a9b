"""What runs beside the model: vLLM mixes this class into the worker that holds it."""

import math
import os
import select
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from udfs.engine import step_meter
from udfs.engine.runtime import Holder, kill_group

FRAMES_MARK = "pixels_are_frames"
"""Field of a video whose pixels are frames; its value is the `layout` of their patches."""
COPYING_THREADS = 4
"""One alone takes 5 to 6 ms for the frames of a window (30 MB), for which the card may have to wait."""


class WorkerExtension:
    """Methods that the host calls in the worker after every start of the engine."""

    model_runner: Any

    def end_with(self, host: dict[str, Any]) -> int:
        """Ends the engine's processes as soon as their host is gone, however it went.

        Args:
            host: fields of the host's `Holder`.

        Returns:
            The worker's process id.
        """
        holder = Holder(**host)
        pidfd = os.pidfd_open(holder.pid)
        threading.Thread(target=_end_group_after, args=(pidfd, holder), daemon=True).start()
        return os.getpid()

    def count_videos(self, path: str) -> bool:
        """Counts the videos that pass through the model's vision tower from now on.

        Args:
            path: file of one `int64`, to which each video adds one.

        Returns:
            Whether the model has a vision tower.
        """
        tower = getattr(self.model_runner.get_model(), "visual", None)
        if tower is None:
            return False
        counter = np.memmap(path, dtype=np.int64, mode="r+", shape=(1,))

        def add(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            grids = named.get("grid_thw", args[1] if len(args) > 1 else None)
            counter[0] += 1 if grids is None else len(grids)

        tower.register_forward_pre_hook(add, with_kwargs=True)
        return True

    def meter_steps(self, path: str) -> None:
        """Adds up how long the engine's steps take from now on.

        Args:
            path: file of one `float64`, to which the seconds of each step are added; see `StepMeter`.
        """
        step_meter.meter_steps(self.model_runner, np.memmap(path, dtype=np.float64, mode="r+", shape=(1,)))

    def remember_grids(self) -> bool:
        """Has the vision tower keep what it works out from the grids of videos, for later ones of the same.

        See `udfs.engine.tower_grids`.

        Returns:
            Whether it keeps them for each size, whatever videos come together.
        """
        from udfs.engine.tower_grids import Remembering

        tower: Any = getattr(self.model_runner.get_model(), "visual", None)
        prepare = getattr(tower, "prepare_encoder_metadata", None)
        if prepare is None:
            return False
        tower.prepare_encoder_metadata = kept = Remembering(prepare)
        return kept.joins

    def take_bytes(self, mean: list[float], std: list[float]) -> bool:
        """Makes the model take `uint8` pixels and rescale and normalize them itself, where its weights are.

        Frames that come as they are, one tensor for each video, are cut into patches there, too.

        Args:
            mean: of each channel, of values between 0 and 1.
            std: standard deviation of each channel.

        Returns:
            Whether the model is one that can be made to.
        """
        import torch
        from vllm.platforms import current_platform

        model = self.model_runner.get_model()
        parse = getattr(model, "_parse_and_validate_video_input", None)
        tower: Any = getattr(model, "visual", None)
        if parse is None or not hasattr(tower, "dtype"):
            return False
        dtype, device = tower.dtype, tower.device
        pin = device.type == "cuda" and current_platform.is_pin_memory_available()
        threads = ThreadPoolExecutor(COPYING_THREADS, "frames") if pin else None

        def moved(pixels: Any) -> Any:
            if threads is not None and not pixels.is_cuda:
                # A card copies pages that stay in place when it comes to that, and nobody waits for it.
                pinned = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
                copy_in_parts(pixels, pinned, threads)
                pixels = pinned
            return pixels.to(device, non_blocking=True)

        def parse_bytes(**inputs: Any) -> Any:
            pixels: Any = inputs.get("pixel_values_videos")
            layouts = inputs.pop(FRAMES_MARK, None)
            if layouts is not None:
                # One by one, so that the card has the first before the others are in pages that stay.
                grids = inputs["video_grid_thw"].tolist()
                cut = (
                    patches(moved(frames), grid, layout)
                    for frames, grid, layout in zip(pixels, grids, layouts.tolist(), strict=True)
                )
                inputs["pixel_values_videos"] = _as_floats(cut, grids, mean, std, dtype)
            elif pixels is not None and pixels.dtype == torch.uint8:
                grids = inputs["video_grid_thw"].tolist()
                videos = moved(pixels).split([math.prod(grid) for grid in grids])
                inputs["pixel_values_videos"] = _as_floats(videos, grids, mean, std, dtype)
            return parse(**inputs)

        model._parse_and_validate_video_input = parse_bytes
        return True


def copy_in_parts(source: Any, target: Any, threads: ThreadPoolExecutor) -> None:
    """Copies a tensor to another of the same size in parts, one for each thread, and waits for them."""
    import torch

    def copy(part: Any, there: Any) -> None:
        with torch.inference_mode():
            there.copy_(part)

    pieces = (tensor.reshape(-1).chunk(COPYING_THREADS) for tensor in (source, target.view(-1)))
    for _ in threads.map(copy, *pieces):
        pass


def _as_floats(
    videos: Iterable[Any],
    grids: list[list[int]],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: Any,
) -> Any:
    """Returns the patches of videos as the vision tower takes them; one video at a time, to save memory."""
    import torch

    floats, start = None, 0
    for pixels in videos:
        if floats is None:
            shape = (sum(map(math.prod, grids)), pixels.shape[1])
            floats = torch.empty(shape, dtype=dtype, device=pixels.device)
        end = start + len(pixels)
        floats[start:end] = normalized(pixels, mean, std)
        start = end
    return floats


def patches(frames: Any, grid: Sequence[int], layout: Sequence[int]) -> Any:
    """Cuts frames into patches as the models' processors do; an incomplete last pair repeats the last frame.

    Args:
        frames: `uint8` tensor of any shape with the values of frames (n, height, width, 3).
        grid: patches in time, height and width.
        layout: frames of a patch, its side in pixels, and the side of a group of patches that become one
            token.

    Returns:
        Shape (patches, values); a copy.
    """
    import torch

    times, rows, columns = grid
    depth, side, merge = layout
    frames = frames.reshape(-1, rows * side, columns * side, 3)
    if missing := times * depth - len(frames):
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    split = frames.reshape(times, depth, rows // merge, merge, side, columns // merge, merge, side, -1)
    grouped = split.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return grouped.reshape(times * rows * columns, -1)


def normalized(pixels: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Rescales and normalizes as the models' processors do, bit by bit.

    Args:
        pixels: tensor (patches, channels * values) of `uint8`.
        mean: of each channel, of values between 0 and 1.
        std: standard deviation of each channel.

    Returns:
        `float32` of the same shape on the same device.
    """
    centre, spread = _scale(tuple(mean), tuple(std), pixels.device)
    channels = pixels.view(len(pixels), len(mean), -1).float()
    return channels.sub_(centre).div_(spread).view(pixels.shape)


@cache
def _scale(mean: tuple[float, ...], std: tuple[float, ...], device: Any) -> tuple[Any, Any]:
    """Mean and deviation as they are applied; kept on the device, since bringing them there waits for it."""
    import torch

    # The processors scale these instead of the pixels, in this type.
    centre, spread = (torch.tensor(values, dtype=torch.float32).mul(255.0) for values in (mean, std))
    return centre.view(1, -1, 1).to(device), spread.view(1, -1, 1).to(device)


def _end_group_after(pidfd: int, holder: Holder) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll():
        pass
    kill_group(holder, spare=os.getpid())
    os._exit(1)
