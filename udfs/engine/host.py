"""The process that owns a model: `python -m udfs.engine.host`, with its order as JSON on stdin.

It leads a session of its own, lives as long as the executor that it belongs to, and says everything on
its log. It listens before it loads, so that clients can wait, decode, and see how far it is.
"""

import asyncio
import json
import logging
import os
import select
import shutil
import socket
import sys
import threading
import time
from typing import Any

from conf.engine import EngineSettings
from conf.errors import EngineError
from udfs.engine import vllm_compat
from udfs.engine.connection import Connection
from udfs.engine.launch import EXIT_TAKEN, check_memory_limit
from udfs.engine.runtime import Holder, HostLock, Place, kill_group, runtime_dir, sweep
from udfs.engine.slot import Slot, card_id, process_start
from udfs.engine.supervisor import Supervisor

logger = logging.getLogger(__name__)

TICK_S = 1.0
PROGRESS_EVERY_S = 10.0
IDLE_BEFORE_RETIRING_S = 2.0
FAREWELL_S = 5.0
BACKLOG = 256
LEAVING_S = 20.0


class Host:
    """The server of one engine."""

    def __init__(self, settings: EngineSettings, slot: Slot, place: Place, holder: Holder) -> None:
        self.settings = settings
        self.slot = slot
        self.place = place
        self.supervisor = Supervisor(settings, place, holder)
        self.connections: set[Connection] = set()
        self.retiring = False
        self._ready_since: float | None = None
        self._last_busy = time.monotonic()
        self._stop = asyncio.Event()

    async def serve(self, listener: socket.socket) -> None:
        """Serves clients until the engine has failed for good, retired, or been told to stop."""
        tasks = [
            asyncio.create_task(self._accept(listener)),
            asyncio.create_task(self.supervisor.run()),
            asyncio.create_task(self._tick()),
        ]
        for task in tasks:
            task.add_done_callback(self._on_task_end)
        await self._stop.wait()
        listener.close()
        self.place.socket.unlink(missing_ok=True)

    def stop(self) -> None:
        """Makes `serve` return."""
        self._stop.set()

    @property
    def is_wanted_by_others(self) -> bool:
        """Whether a client with other settings waits for this slot."""
        return any(connection.is_waiting for connection in self.connections)

    def share_credit(self) -> None:
        """Tells every client how many requests it may have in flight."""
        clients = [connection for connection in self.connections if connection.is_client]
        for connection in clients:
            connection.offer(self.settings.max_in_flight // len(clients))

    def status(self) -> dict[str, Any]:
        """Returns what clients may know."""
        return {
            "pid": os.getpid(),
            "key": self.settings.key,
            "clients": sum(connection.is_client for connection in self.connections),
            "in_flight": self._in_flight(),
            "log": str(self.place.log),
            **self.supervisor.status(),
        }

    def _in_flight(self) -> int:
        return sum(connection.in_flight for connection in self.connections)

    def _on_task_end(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the host broke down", exc_info=error)
            self.stop()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            self.connections.add(Connection(sock, self))

    async def _tick(self) -> None:
        """Tells waiting clients how the load goes, and decides when to make room for other settings."""
        told = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S / 5 if self.is_wanted_by_others else TICK_S)
            now = time.monotonic()
            if self._in_flight():
                self._last_busy = now
            if self.supervisor.state == "loading" and now - told >= PROGRESS_EVERY_S:
                told = now
                self._tell_progress(now - self.supervisor.loading_since)
            if self.supervisor.failure is not None:
                await self._say_farewell(self.supervisor.failure)
                return
            if self.is_wanted_by_others and self._may_retire(now):
                self._retire()

    def _tell_progress(self, seconds: float) -> None:
        logger.info("engine loading, %.0f s", seconds)
        for connection in self.connections:
            connection.tell({"type": "loading", "seconds": round(seconds, 1)})

    def _may_retire(self, now: float) -> bool:
        if self.supervisor.state != "ready":
            return False
        self._ready_since = self._ready_since or now
        idle_s, served_s = now - self._last_busy, now - self._ready_since
        return idle_s >= IDLE_BEFORE_RETIRING_S or served_s >= self.settings.tenure_s

    def _retire(self) -> None:
        """Takes no more requests; goes when the last one in flight is answered."""
        self.retiring = True
        if not self._in_flight():
            logger.info("making room for other settings")
            self.stop()

    async def _say_farewell(self, reason: str) -> None:
        """Tells everybody that there will be no engine, for a moment also those who come too late."""
        end = time.monotonic() + FAREWELL_S
        while time.monotonic() < end:
            for connection in [connection for connection in self.connections if connection.is_client]:
                connection.tell({"type": "fatal", "message": reason})
            await asyncio.sleep(TICK_S / 5)
        self.stop()


def listen(place: Place) -> socket.socket:
    """Returns a socket at `place` that only this user can connect to."""
    place.socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(place.socket))
    finally:
        os.umask(mask)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def die_with(slot: Slot, place: Place, holder: Holder) -> None:
    """Ends this process and its group as soon as the owner of `slot` is gone.

    Raises:
        EngineError: when it is gone already.
    """
    try:
        pidfd = os.pidfd_open(slot.owner_pid)
    except ProcessLookupError as error:
        raise EngineError(f"the owner of the engine, process {slot.owner_pid}, is gone") from error
    if process_start(slot.owner_pid) != slot.owner_start:
        raise EngineError(f"the owner of the engine, process {slot.owner_pid}, is gone")
    threading.Thread(target=_end_after, args=(pidfd, place, holder), daemon=True).start()


def _end_after(pidfd: int, place: Place, holder: Holder) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll():
        pass
    end_group(place, holder)


def end_group(place: Place, holder: Holder) -> None:
    """Ends every process of the host, this one last."""
    place.socket.unlink(missing_ok=True)
    shutil.rmtree(place.rpc, ignore_errors=True)
    kill_group(holder, spare=holder.pid)
    os._exit(0)


def claim(slot: Slot, place: Place, holder: Holder) -> None:
    """Takes the slot, and its card where it has a real one; kills what dead hosts left behind.

    A host of the same executor may be on its way out and is waited for.

    Raises:
        EngineError: when another host has it.
    """
    paths = [place.lock]
    card = None if slot.gpu is None else card_id(slot.gpu)
    if card is not None:
        paths.append(runtime_dir() / f"card-{''.join(filter(str.isalnum, card))[:36]}.lock")
    for path in paths:
        lock, deadline = HostLock(path), time.monotonic() + LEAVING_S
        while (other := lock.acquire(holder)) is not None and time.monotonic() < deadline:
            time.sleep(TICK_S / 20)
        if other is not None:
            raise EngineError(
                f"{path.stem} already has an engine: process {other.pid} of executor {other.owner_pid}. "
                "Give each executor GPUs of its own (spark.executor.resource.gpu.*)"
            )


def main() -> int:
    """Runs a host; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(asctime)s %(name)s %(message)s")
    order = json.load(sys.stdin)
    settings, slot = EngineSettings(**order["settings"]), Slot(**order["slot"])
    place = Place.of(slot, settings.key)
    holder = Holder.myself(slot, settings.key)
    try:
        check_memory_limit()
        claim(slot, place, holder)
        sweep(place.folder)
        shutil.rmtree(place.rpc, ignore_errors=True)
        place.rpc.mkdir(mode=0o700)
        die_with(slot, place, holder)
    except EngineError as error:
        logger.error("%s", error)
        return EXIT_TAKEN
    vllm_compat.prepare_environment()
    logger.info("host of %s for process %d: %s", place.name, slot.owner_pid, settings.model_dump_json())
    asyncio.run(_serve(settings, slot, place, holder))
    return 0


async def _serve(settings: EngineSettings, slot: Slot, place: Place, holder: Holder) -> None:
    host = Host(settings, slot, place, holder)
    await host.serve(listen(place))
    # Neither the engine nor threads that still load one are worth waiting for.
    end_group(place, holder)


if __name__ == "__main__":
    sys.exit(main())
