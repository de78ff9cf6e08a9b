"""A task's end of the engine: hands requests over and gets futures back.

Imports neither vLLM nor transformers nor torch. A client may be made before a fork and used after it,
and by several threads.
"""

import itertools
import logging
import os
import select
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from conf.engine import EngineSettings
from conf.errors import EngineError
from udfs.engine import protocol
from udfs.engine.launch import connect
from udfs.engine.protocol import Decoder, Message, ProtocolError
from udfs.engine.requests import CaptionRequest, Reply, Request, reply_of, request_header
from udfs.engine.slot import Slot

logger = logging.getLogger(__name__)

MAX_LOST_HOSTS = 3
PROGRESS_EVERY_S = 10.0
STATUS_TIMEOUT_S = 60.0

THREAD_NAME = "engine-client"
"""Of the thread in which a client lives."""


@dataclass
class _Pending:
    """A request that has no reply yet; its frames stay in the memfd until then."""

    header: dict[str, Any]
    frames_fd: int | None
    future: "Future[Reply]" = field(default_factory=Future)
    sent: bool = False

    def close(self) -> None:
        if self.frames_fd is not None:
            os.close(self.frames_fd)
            self.frames_fd = None


class EngineClient:
    """A connection to the engine of one slot, which is started when it is first needed.

    Requests are answered in any order; each future is its own request's. When the host dies or makes
    room for other settings, what has no reply yet goes to the next one.

    Args:
        settings: of the engine; clients of equal `settings.key` share one.
        slot: where the engine is.
    """

    def __init__(self, settings: EngineSettings, slot: Slot) -> None:
        self.settings = settings
        self.slot = slot
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._send_lock = threading.Lock()
        self._numbers = itertools.count()
        self._pending: dict[int, _Pending] = {}
        self._asked: dict[int, Future[dict[str, Any]]] = {}
        self._sock: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self._is_closed = False
        self._credit = 1
        self._min_in_flight = 1
        self._waiting_since: float | None = None

    def __enter__(self) -> "EngineClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, request: Request, min_in_flight: int = 1) -> "Future[Reply]":
        """Hands `request` over, and waits while as many as allowed are in flight already.

        Args:
            request: of the kind that the engine's model takes.
            min_in_flight: requests that this client may have in flight however many clients there are.

        Returns:
            The future of the reply. It raises EngineError when there is no engine and will be none;
            whatever is wrong with the request itself is in the reply.

        Raises:
            ValueError: when the frames are no frames, or the request is of the other kind.
        """
        self._survive_fork()
        header = request_header(request)
        if header["kind"] != self.settings.kind:
            raise ValueError(f"an engine of kind {self.settings.kind!r} takes no {header['kind']!r} request")
        self._want(min_in_flight)
        self._start()
        with self._changed:
            self._changed.wait_for(self._may_submit)
            if (failed := self._failed()) is not None:
                future: Future[Reply] = Future()
                future.set_exception(failed)
                return future
            number = next(self._numbers)
            fd = protocol.share_frames(request.frames) if isinstance(request, CaptionRequest) else None
            pending = self._pending[number] = _Pending(header, fd)
            pending.future.set_running_or_notify_cancel()
        self._send_pending(number, pending)
        return pending.future

    def status(self) -> dict[str, Any]:
        """Returns what the host says of itself; starts one when there is none.

        Returns:
            `pid`, `key`, `clients`, `in_flight`, `log`, `state` ("loading", "ready", "failed"), `loads`,
            `running`, `steps`, `busy_s` (seconds in steps; None when unknown), `prompt_tokens`,
            `output_tokens`, `videos_encoded` (through the vision tower), `versions`; and, when ready,
            `device`, `precision`, `resolved` (vLLM's resolved settings), `takes_bytes` and `takes_frames`
            (whether the model prepares pixels itself, see `udfs.engine.worker.WorkerExtension.take_bytes`),
            and `remembers_grids` (see `remember_grids` there).

        Raises:
            EngineError: when the host cannot be reached.
        """
        self._survive_fork()
        self._start()
        future: Future[dict[str, Any]] = Future()
        with self._changed:
            self._changed.wait_for(
                lambda: self._sock is not None or self._failed() is not None, STATUS_TIMEOUT_S
            )
            if (failed := self._failed()) is not None:
                raise failed
            number = next(self._numbers)
            self._asked[number] = future
        self._send({"type": "status", "id": number})
        try:
            return future.result(STATUS_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineError("the engine's host does not answer") from error

    def wait_ready(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Waits until the model is loaded and returns the status.

        Raises:
            EngineError: when it does not load, or not in `timeout_s` seconds (default: the settings'
                start timeout).
        """
        deadline = time.monotonic() + (self.settings.start_timeout_s if timeout_s is None else timeout_s)
        while time.monotonic() < deadline:
            status = self.status()
            if status["state"] == "ready":
                return status
            time.sleep(0.2)
        raise EngineError("the engine is not ready in time")

    def stop_host(self) -> None:
        """Ends the host and its engine; requests of other clients start a new one."""
        self._survive_fork()
        self._send({"type": "stop"})

    def close(self) -> None:
        """Ends the connection; requests without a reply are aborted, and their futures fail."""
        self._survive_fork()
        with self._changed:
            self._is_closed = True
            if self._sock is not None:
                _shut(self._sock)
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._fail_all(EngineError("the client was closed"))

    # -- what runs in the caller's thread

    def _survive_fork(self) -> None:
        if self._pid == os.getpid():
            return
        if self._sock is not None:
            self._sock.close()
        for pending in self._pending.values():
            pending.close()
        self._reset()

    def _want(self, min_in_flight: int) -> None:
        if min_in_flight == self._min_in_flight:
            return
        with self._changed:
            self._min_in_flight = min_in_flight
            self._credit = max(self._credit, min_in_flight)
        self._send({"type": "want", "min_in_flight": min_in_flight})

    def _may_submit(self) -> bool:
        return self._failed() is not None or len(self._pending) < max(self._credit, self._min_in_flight)

    def _failed(self) -> EngineError | None:
        if self._is_closed:
            return EngineError("the client was closed")
        return None if self._failure is None else EngineError(self._failure)

    def _start(self) -> None:
        with self._changed:
            if self._thread is None and self._failed() is None:
                self._thread = threading.Thread(target=self._live, name=THREAD_NAME, daemon=True)
                self._thread.start()

    def _send_pending(self, number: int, pending: _Pending) -> None:
        fds = () if pending.frames_fd is None else (pending.frames_fd,)
        with self._send_lock:
            if self._sock is None or pending.sent or pending.future.done():
                return
            pending.sent = True
            self._send_locked(self._sock, {"type": "ask", "id": number, "request": pending.header}, fds)

    def _send(self, body: dict[str, Any]) -> None:
        with self._send_lock:
            if self._sock is not None:
                self._send_locked(self._sock, body, ())

    @staticmethod
    def _send_locked(sock: socket.socket, body: dict[str, Any], fds: tuple[int, ...]) -> None:
        try:
            protocol.send(sock, body, fds)
        except OSError:
            _shut(sock)  # the thread that reads finds the end, and sends again elsewhere

    # -- what runs in the client's own thread

    def _live(self) -> None:
        lost = 0
        try:
            while not self._is_closed:
                answered = self._talk(connect(self.slot, self.settings))
                lost = 0 if answered else lost + 1
                if lost >= MAX_LOST_HOSTS:
                    self._give_up(EngineError(f"the engine's host went away {lost} times without one answer"))
                    return
        except Exception as error:
            if not isinstance(error, EngineError):
                logger.exception("the engine's client broke down")
            self._give_up(error if isinstance(error, EngineError) else EngineError(repr(error)))

    def _give_up(self, error: EngineError) -> None:
        with self._changed:
            self._failure = str(error)
        self._fail_all(error)

    def _talk(self, sock: socket.socket) -> bool:
        """Serves one connection to its end; returns whether it was of use."""
        decoder = Decoder()
        was_of_use = False
        try:
            protocol.send(sock, self._hello())
            while data := self._receive(sock):
                for message in decoder.feed(*data):
                    was_of_use = self._take(message, sock) or was_of_use
        except OSError as error:
            logger.debug("connection to the engine lost: %s", error)
        finally:
            decoder.close()
            self._disconnect()
            sock.close()
        return was_of_use

    def _hello(self) -> dict[str, Any]:
        return {
            "type": "hello",
            "version": protocol.VERSION,
            "key": self.settings.key,
            "render": self.settings.render.model_dump(mode="json"),
            "min_in_flight": self._min_in_flight,
        }

    def _receive(self, sock: socket.socket) -> tuple[bytes, list[int]] | None:
        """Returns what comes next, None at the end; tells now and then how long it has been waiting."""
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while not poll.poll(PROGRESS_EVERY_S * 1000):
            self._tell_waiting()
        data = protocol.receive(sock)
        return data if data[0] else None

    def _tell_waiting(self) -> None:
        if self._waiting_since is not None:
            logger.info("waiting for the GPU, %.0f s", time.monotonic() - self._waiting_since)

    def _take(self, message: Message, sock: socket.socket) -> bool:
        body = message.body
        if message.type == "reply":
            self._settle(int(body["id"]), reply_of(body["reply"]))
            return True
        if message.type == "welcome":
            self._connected(sock)
        elif message.type == "credit":
            with self._changed:
                self._credit = int(body["credit"])
                self._changed.notify_all()
        elif message.type == "status":
            self._asked.pop(int(body["id"])).set_result(body["status"])
        elif message.type == "loading":
            logger.info("engine loading, %.0f s", body["seconds"])
        elif message.type == "occupied":
            self._waiting_since = time.monotonic()
            logger.info("waiting for the GPU, which %s has now", body["by"])
            return True
        elif message.type == "retired":
            return True  # it is pending still, and goes to the next host
        elif message.type == "fatal":
            raise EngineError(str(body["message"]))
        else:
            message.close()
            raise ProtocolError(f"the engine's host said {message.type!r}")
        return False

    def _connected(self, sock: socket.socket) -> None:
        with self._changed:
            self._waiting_since = None
            with self._send_lock:
                self._sock = sock
            waiting = [item for item in self._pending.items() if not item[1].sent]
            self._changed.notify_all()
            if self._is_closed:
                _shut(sock)
        for number, pending in waiting:
            self._send_pending(number, pending)

    def _disconnect(self) -> None:
        with self._changed, self._send_lock:
            self._sock = None
            for pending in self._pending.values():
                pending.sent = False
            asked, self._asked = list(self._asked.values()), {}
        for future in asked:
            future.set_exception(EngineError("the engine's host went away"))

    def _settle(self, number: int, reply: Reply) -> None:
        with self._changed:
            pending = self._pending.pop(number, None)
            self._changed.notify_all()
        if pending is not None:
            with self._send_lock:
                pending.close()
            pending.future.set_result(reply)

    def _fail_all(self, error: EngineError) -> None:
        with self._changed:
            pending, self._pending = list(self._pending.values()), {}
            self._changed.notify_all()
        for item in pending:
            with self._send_lock:
                item.close()
            item.future.set_exception(EngineError(str(error)))


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
