"""Keeps an engine alive, and finds the request that kills it."""

import asyncio
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from conf.engine import EngineSettings
from conf.errors import EngineError
from udfs.engine import vllm_compat
from udfs.engine.requests import EngineReading
from udfs.engine.runtime import Holder, Place, kill_group, log_tail, record_load
from udfs.engine.vllm_compat import Engine, Meter

logger = logging.getLogger(__name__)

POLL_S = 0.2
BACKOFF_S = (1.0, 5.0, 15.0)
T = TypeVar("T")


class EngineGoneError(Exception):
    """Raised when the engine died under a request."""


class KillerRequestError(Exception):
    """Raised for a request that was alone in the engine when it died, twice."""


class Supervisor:
    """One engine, started again when it dies.

    Requests that were in flight when the engine died are suspects: they are tried again one at a
    time, and nothing else runs until the last of them is through. One under which the engine dies
    while it is alone is given up.

    Attributes:
        state: "loading", "ready" or "failed".
        loads: times that the model was loaded.
        failure: why there will be no engine any more; None while there may be one.
        engine_id: names this one among all engines of all machines.
    """

    def __init__(self, settings: EngineSettings, place: Place, holder: Holder) -> None:
        self.settings = settings
        self.place = place
        self.holder = holder
        self.state = "loading"
        self.loads = 0
        self.loading_since = time.monotonic()
        self.failure: str | None = None
        self.engine_id = str(uuid.uuid4())
        self.meter = Meter()
        self.device: vllm_compat.Device | None = None
        self.engine: Engine | None = None
        self.running = 0
        self._busy_s: npt.NDArray[np.float64] | None = None
        self._suspects = 0
        self._answered_since_load = False
        self._changed = asyncio.Condition()
        self._death: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._solo = asyncio.Lock()
        # The engine's process is a child of the thread that starts it, so that thread stays.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-start")

    async def run(self) -> None:
        """Starts the engine, and starts it again whenever it dies, until that has no more prospects."""
        deaths = 0
        while self.failure is None:
            error = await self._start()
            if error is not None and (self.loads == 0 or deaths >= len(BACKOFF_S)):
                await self._fail(error)
                return
            if error is None:
                await self._until_dead()
                deaths = 0 if self._answered_since_load else deaths
            if deaths >= len(BACKOFF_S):
                await self._fail(f"the engine died {deaths + 1} times in a row without one answer")
                return
            await asyncio.sleep(BACKOFF_S[deaths])
            deaths += 1

    async def answer(self, ask: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
        """Returns what `ask` makes of the engine, in as many engines as that takes.

        Raises:
            EngineError: when there is no engine any more.
            KillerRequestError: when this very request kills engines.
            Exception: whatever `ask` raises with the engine alive.
        """
        try:
            async with self._admitted() as engine:
                return await self._ask(engine, ask)
        except EngineGoneError:
            self._suspects += 1
        try:
            async with self._solo, self._admitted(alone=True) as engine:
                return await self._ask(engine, ask)
        except EngineGoneError as error:
            raise KillerRequestError(
                "the engine died twice while it worked on this request, the second time on nothing else"
            ) from error
        finally:
            self._suspects -= 1
            await self._notify()

    async def _ask(self, engine: Engine, ask: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.create_task(ask(engine))
        try:
            # Not only the task: vLLM leaves requests waiting for ever when it is killed at a bad moment.
            ends: set[asyncio.Future[Any]] = {task, self._death}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                task.add_done_callback(_discard)
        if not task.done():
            raise EngineGoneError
        try:
            result = task.result()
        except Exception as error:
            if vllm_compat.is_engine_death(error) or engine.errored:
                raise EngineGoneError from error
            self._answered_since_load = True
            raise
        finally:
            # The error's traceback holds this call, and the task the error: left alone, the circle keeps the
            # request with its frames.
            del task, ends
        self._answered_since_load = True
        return result

    @asynccontextmanager
    async def _admitted(self, *, alone: bool = False) -> AsyncIterator[Engine]:
        async with self._changed:
            await self._changed.wait_for(lambda: self.failure is not None or self._is_free(alone))
            if self.failure is not None:
                raise EngineError(self.failure)
            engine = self.engine
            assert engine is not None
            self.running += 1
            self.meter.last_step = time.monotonic()
        try:
            yield engine
        finally:
            self.running -= 1
            await self._notify()

    def _is_free(self, alone: bool) -> bool:
        if self.engine is None or self.engine.errored:
            return False
        return self.running == 0 if alone else self._suspects == 0

    async def _start(self) -> str | None:
        """Starts an engine; returns why that failed, or None."""
        self.state, self.loading_since = "loading", time.monotonic()
        started = asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        try:
            engine = await asyncio.wait_for(asyncio.shield(started), self.settings.start_timeout_s)
            await engine.call_worker("end_with", asdict(self.holder))
            await engine.call_worker("count_videos", str(self._counter("videos")))
            await engine.call_worker("meter_steps", str(self._counter("busy")))
            if self.settings.kind == "caption":
                await engine.remember_grids()
                await engine.hand_bytes_over()
        except TimeoutError:
            started.add_done_callback(lambda future: future.cancelled() or future.exception())
            await self._kill_rest()
            return f"the engine was not ready after {self.settings.start_timeout_s:.0f} s"
        except Exception as error:
            logger.exception("the engine did not start")
            await self._kill_rest()
            return f"the engine did not start: {vllm_compat.innermost_message(error)}"
        seconds = time.monotonic() - self.loading_since
        self.loads += 1
        self._busy_s = np.memmap(self._counter("busy"), dtype=np.float64, mode="r", shape=(1,))
        record_load(self.place, {"key": self.settings.key, "pid": os.getpid(), "seconds": round(seconds, 1)})
        logger.info("engine ready after %.1f s (load %d)", seconds, self.loads)
        self.engine, self.state, self._answered_since_load = engine, "ready", False
        self._death = asyncio.get_running_loop().create_future()
        self.meter.last_step = time.monotonic()
        await self._notify()
        return None

    def _counter(self, name: str) -> Path:
        """A file of one number that the engine adds to; engines that come after a dead one go on with it."""
        path = self.place.rpc / name
        if not path.exists():
            path.write_bytes(bytes(8))
        return path

    def _load(self) -> Engine:
        self.device = vllm_compat.find_device()
        return Engine(self.settings, self.device, self.meter)

    async def _until_dead(self) -> None:
        """Returns when the engine has died; kills one that hangs."""
        engine = self.engine
        assert engine is not None
        while not engine.errored:
            await asyncio.sleep(POLL_S)
            silent_s = time.monotonic() - self.meter.last_step
            if self.running and silent_s > self.settings.hang_timeout_s:
                logger.error(
                    "no step of the engine for %.0f s with %d running; killing it", silent_s, self.running
                )
                await self._kill_rest()
        logger.error("the engine died with %d requests in flight", self.running)
        self.engine, self.state, self.loading_since = None, "loading", time.monotonic()
        self._death.set_result(None)
        await self._notify()
        await asyncio.get_running_loop().run_in_executor(self._thread, engine.shutdown)
        await self._kill_rest()

    async def _kill_rest(self) -> None:
        """Kills every process of the host but the host."""
        await asyncio.to_thread(kill_group, self.holder, spare=self.holder.pid)

    async def _fail(self, reason: str) -> None:
        self.state = "failed"
        self.failure = (
            f"{reason}\nThe end of the engine's log ({self.place.log}):\n{log_tail(self.place.log)}"
        )
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    @property
    def busy_s(self) -> float | None:
        """Seconds that the engine has spent in steps; None before the first load, and when unknown."""
        busy_s = math.nan if self._busy_s is None else float(self._busy_s[0])
        return None if math.isnan(busy_s) else busy_s

    def reading(self) -> EngineReading | None:
        """Returns how long the engine has worked until now; None when that is unknown."""
        busy_s = self.busy_s
        return None if busy_s is None else EngineReading(self.engine_id, time.monotonic(), busy_s)

    def status(self) -> dict[str, Any]:
        """Returns the state of the engine in JSON types."""
        described: dict[str, Any] = {
            "state": self.state,
            "loads": self.loads,
            "running": self.running,
            "steps": self.meter.steps,
            "busy_s": self.busy_s,
            "prompt_tokens": self.meter.prompt_tokens,
            "output_tokens": self.meter.output_tokens,
            "videos_encoded": int.from_bytes(self._counter("videos").read_bytes(), sys.byteorder),
            "versions": vllm_compat.versions(),
        }
        if self.engine is not None and self.device is not None:
            described["device"] = self.device.name
            described["precision"] = self.engine.resolved()["quantization"] or self.engine.resolved()["dtype"]
            described["resolved"] = self.engine.resolved()
            described["takes_bytes"] = self.engine.renderer.takes_bytes
            described["takes_frames"] = self.engine.renderer.takes_frames
            described["remembers_grids"] = self.engine.remembers_grids
        return described


def _discard(task: "asyncio.Task[Any]") -> None:
    """Takes note of how an abandoned task ended, so that nothing complains about it."""
    if not task.cancelled():
        task.exception()
