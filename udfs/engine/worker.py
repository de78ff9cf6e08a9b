"""What runs beside the model: vLLM mixes this class into the worker that holds it."""

import os
import select
import threading
from typing import Any

import numpy as np

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


def _end_group_after(pidfd: int, holder: Holder) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll():
        pass
    kill_group(holder, spare=os.getpid())
    os._exit(1)
