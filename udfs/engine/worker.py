"""What runs beside the model: vLLM mixes this class into the worker that holds it."""

import os
import select
import threading
from typing import Any

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


def _end_group_after(pidfd: int, holder: Holder) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll():
        pass
    kill_group(holder, spare=os.getpid())
    os._exit(1)
