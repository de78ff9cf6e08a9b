"""The host's end of one client's connection."""

import asyncio
import logging
import os
import socket
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from conf.engine import RenderSettings
from conf.errors import EngineError
from udfs.engine import protocol
from udfs.engine.answering import Task, reply_to
from udfs.engine.protocol import Decoder, Message, ProtocolError
from udfs.engine.requests import Reply, Request, request_of

if TYPE_CHECKING:
    from udfs.engine.host import Host

logger = logging.getLogger(__name__)

MAX_UNSENT_BYTES = 256 << 20


class Connection:
    """Reads requests of one client, and writes replies in the order in which they come about."""

    def __init__(self, sock: socket.socket, host: "Host") -> None:
        sock.setblocking(False)
        self.render: RenderSettings | None = None
        self.min_in_flight = 1
        self.is_waiting = False
        self._sock = sock
        self._host = host
        self._decoder = Decoder()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    @property
    def is_client(self) -> bool:
        """Whether the other end has introduced itself and speaks of the same engine."""
        return self.render is not None

    @property
    def in_flight(self) -> int:
        """Requests of this client that are not answered yet."""
        return len(self._tasks)

    def offer(self, share: int) -> None:
        """Tells the client how many requests it may have in flight, given its share of the engine."""
        self.tell({"type": "credit", "credit": max(1, self.min_in_flight, share)})

    def tell(self, body: dict[str, Any]) -> None:
        """Sends a message as soon as the socket takes it."""
        was_empty = not self._unsent
        self._unsent += protocol.encode(body)
        if len(self._unsent) > MAX_UNSENT_BYTES:
            logger.error("a client reads no replies; leaving it")
            self.close()
        elif was_empty:
            self._write()

    def close(self) -> None:
        """Leaves the client: aborts its requests and closes everything that came from it."""
        if self not in self._host.connections:
            return
        self._host.connections.discard(self)
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._decoder.close()
        for task in self._tasks.values():
            task.cancel()
        self._host.share_credit()

    def _read(self) -> None:
        try:
            data, fds = protocol.receive(self._sock)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            logger.warning("lost a client: %s", error)
            self.close()
            return
        if not data:
            self.close()
            return
        try:
            for message in self._decoder.feed(data, fds):
                self._take(message)
        except (ProtocolError, KeyError, ValueError, TypeError) as error:
            logger.warning("a client breaks the protocol: %r", error)
            self.tell({"type": "fatal", "message": f"the engine's host refuses this client: {error}"})
            self.close()

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._sock, self._write)
        else:
            self._loop.remove_writer(self._sock)

    def _take(self, message: Message) -> None:
        body = message.body
        if message.type == "hello":
            self._greet(body)
        elif message.type == "status":
            self.tell({"type": "status", "id": body["id"], "status": self._host.status()})
        elif message.type == "stop":
            self._host.stop()
        elif not self.is_client:
            message.close()
            raise ProtocolError("a client must say hello before anything else")
        elif message.type == "want":
            self.min_in_flight = int(body["min_in_flight"])
            self._host.share_credit()
        elif message.type == "ask":
            self._ask(int(body["id"]), message)
        else:
            message.close()
            raise ProtocolError(f"unknown message {message.type!r}")

    def _greet(self, body: dict[str, Any]) -> None:
        if body["version"] != protocol.VERSION:
            raise ProtocolError(
                f"client and host are of different versions ({body['version']}, {protocol.VERSION})"
            )
        if body["key"] != self._host.settings.key or self._host.retiring:
            self.is_waiting = True
            self.tell({"type": "occupied", "by": self._host.settings.model_path})
            return
        self.render = RenderSettings(**body["render"])
        self.min_in_flight = int(body["min_in_flight"])
        self.tell({"type": "welcome", "pid": os.getpid(), "state": self._host.supervisor.state})
        self._host.share_credit()

    def _ask(self, number: int, message: Message) -> None:
        if self._host.retiring:
            message.close()
            self.tell({"type": "retired", "id": number})
            return
        task = self._tasks[number] = self._loop.create_task(self._answer(number, message))
        # Not at the end of `_answer`: a task that is aborted before it has begun runs none of it.
        task.add_done_callback(lambda _: self._forget(number, message))

    async def _answer(self, number: int, message: Message) -> None:
        try:
            assert self.render is not None
            self._tell_reply(number, await self._reply(message, self.render))
        except EngineError as error:
            self.tell({"type": "fatal", "message": str(error)})
        except Exception as error:
            logger.exception("request failed in the host")
            self._tell_reply(number, Reply(text=None, error=repr(error)))

    def _tell_reply(self, number: int, reply: Reply) -> None:
        metered = replace(reply, engine=self._host.supervisor.reading())
        self.tell({"type": "reply", "id": number, "reply": asdict(metered)})

    def _forget(self, number: int, message: Message) -> None:
        message.close()
        self._tasks.pop(number, None)

    async def _reply(self, message: Message, render: RenderSettings) -> Reply:
        try:
            request = read_request(message)
        except (ProtocolError, ValueError) as error:
            return Reply(text=None, error=str(error))
        return await reply_to(Task.of(request, render), self._host.supervisor)


def read_request(message: Message) -> Request:
    """Returns the request in `message`, with its frames mapped from the descriptor that came along."""
    header = message.body["request"]
    if header["kind"] == "text":
        return request_of(header, None)
    if len(message.fds) != 1:
        raise ProtocolError("a caption request needs the descriptor of its frames")
    return request_of(header, protocol.map_frames(message.fds[0], header["shape"]))
