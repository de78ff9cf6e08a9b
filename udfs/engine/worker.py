"""What runs beside the model: vLLM mixes this class into the worker that holds it."""

import os
import select
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from udfs.engine import step_meter
from udfs.engine.runtime import Holder, kill_group


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

    def take_bytes(self, mean: list[float], std: list[float]) -> bool:
        """Makes the model take `uint8` pixels and rescale and normalize them itself, where its weights are.

        Args:
            mean: of each channel, of values between 0 and 1.
            std: standard deviation of each channel.

        Returns:
            Whether the model is one that can be made to.
        """
        model = self.model_runner.get_model()
        parse = getattr(model, "_parse_and_validate_video_input", None)
        if parse is None:
            return False

        def parse_bytes(**inputs: Any) -> Any:
            pixels = inputs.get("pixel_values_videos")
            if pixels is not None:
                inputs["pixel_values_videos"] = normalized(pixels, mean, std)
            return parse(**inputs)

        model._parse_and_validate_video_input = parse_bytes
        return True


def normalized(pixels: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Rescales and normalizes as the models' processors do, bit by bit.

    Args:
        pixels: tensor (patches, channels * values) of `uint8`; others are returned as they are.
        mean: of each channel, of values between 0 and 1.
        std: standard deviation of each channel.

    Returns:
        `float32` of the same shape on the same device.
    """
    import torch

    if pixels.dtype != torch.uint8:
        return pixels
    # The processors scale mean and deviation instead of the pixels, in this type.
    centre, spread = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).mul(255.0).view(1, -1, 1)
        for values in (mean, std)
    )
    channels = pixels.view(len(pixels), len(mean), -1).float()
    return channels.sub_(centre).div_(spread).view(pixels.shape)


def _end_group_after(pidfd: int, holder: Holder) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll():
        pass
    kill_group(holder, spare=os.getpid())
    os._exit(1)
