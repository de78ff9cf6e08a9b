"""The wire between clients and host: framed JSON over a Unix stream socket, pixels as sealed memfds.

A message is a header (`MAGIC`, length of the body, number of descriptors), a JSON body, and its
descriptors, which travel with the header's first byte. Decoding does no I/O, so that a test can feed
it bytes in any portions.
"""

import array
import fcntl
import json
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from mmap import ACCESS_COPY, mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.errors import EngineError

VERSION = 1
MAGIC = b"CLK1"
HEADER = struct.Struct("!4sIB")
MAX_BODY_BYTES = 64 << 20
MAX_FRAME_BYTES = 16 << 30
MAX_FDS = 1
RECEIVE_BYTES = 1 << 18
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class ProtocolError(EngineError):
    """Raised when what arrives on the socket is not what client and host agreed on."""


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        body: JSON object; `type` says what it is.
        fds: descriptors that came with it; whoever takes the message closes them.
    """

    body: dict[str, Any]
    fds: tuple[int, ...] = ()

    @property
    def type(self) -> str:
        """What kind of message this is."""
        return str(self.body.get("type"))

    def close(self) -> None:
        """Closes the descriptors."""
        for fd in self.fds:
            os.close(fd)


def encode(body: dict[str, Any], *, num_fds: int = 0) -> bytes:
    """Returns the bytes of a message whose descriptors are sent beside them."""
    payload = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    if len(payload) > MAX_BODY_BYTES:
        raise ProtocolError(f"a message of {len(payload)} bytes is over the limit of {MAX_BODY_BYTES}")
    return HEADER.pack(MAGIC, len(payload), num_fds) + payload


def send(sock: socket.socket, body: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Sends one message on a blocking socket; callers keep others off the socket meanwhile."""
    data = encode(body, num_fds=len(fds))
    sent = socket.send_fds(sock, [data], list(fds)) if fds else sock.send(data)
    sock.sendall(memoryview(data)[sent:])


@dataclass
class Decoder:
    """Cuts a stream of bytes and descriptors into messages."""

    _buffer: bytearray = field(default_factory=bytearray)
    _fds: deque[int] = field(default_factory=deque)

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[Message]:
        """Takes what arrived and returns the messages that are whole now.

        Raises:
            ProtocolError: when the bytes are no message; the connection is then of no more use.
        """
        self._buffer += data
        self._fds.extend(fds)
        messages = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def _next(self) -> Message | None:
        if len(self._buffer) < HEADER.size:
            return None
        magic, length, num_fds = HEADER.unpack_from(self._buffer)
        if magic != MAGIC or length > MAX_BODY_BYTES or num_fds > MAX_FDS:
            raise ProtocolError("the other end does not speak the engine's protocol")
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        if len(self._fds) < num_fds:
            raise ProtocolError(f"a message announced {num_fds} descriptors, {len(self._fds)} came")
        try:
            body = json.loads(self._buffer[HEADER.size : end].decode("utf-8", "surrogatepass"))
        except ValueError as error:
            raise ProtocolError(f"a message is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise ProtocolError("a message is not a JSON object")
        del self._buffer[:end]
        return Message(body, tuple(self._fds.popleft() for _ in range(num_fds)))

    def close(self) -> None:
        """Closes descriptors that no message has claimed."""
        while self._fds:
            os.close(self._fds.popleft())


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Returns the next bytes and descriptors; empty bytes mean that the other end is gone.

    Raises:
        BlockingIOError: when the socket does not block and nothing is there.
    """
    room = socket.CMSG_SPACE(64 * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(RECEIVE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise ProtocolError("more descriptors came than fit, or this process has none left")
    return data, list(fds)


def share_frames(frames: npt.NDArray[np.uint8]) -> int:
    """Returns a sealed memfd with the pixels of `frames`, (n, height, width, 3); the caller closes it."""
    fd = os.memfd_create("captionlake-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = np.ascontiguousarray(frames).data.cast("B")
        while rest:
            rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_frames(fd: int, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Returns the pixels behind `fd` without copying them; writing to the array changes nobody else's.

    Args:
        fd: a memfd that nobody can shrink or write any more; stays open.
        shape: (n, height, width, 3) as its sender declared it.

    Raises:
        ProtocolError: when it is no sealed memfd, or its size is not that of `shape`.
    """
    sides = [int(side) for side in shape]
    if len(sides) != 4 or sides[3] != 3 or min(sides) < 1 or prod(sides) > MAX_FRAME_BYTES:
        raise ProtocolError(f"frames cannot have the shape {sides}")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ProtocolError("frames must come in a memfd")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise ProtocolError("frames must come in a memfd") from error
    if seals & SEALS != SEALS:
        raise ProtocolError("frames must come in a sealed memfd")
    if status.st_size != prod(sides):
        raise ProtocolError(f"frames of shape {sides} need {prod(sides)} bytes, {status.st_size} came")
    mapped = mmap(fd, prod(sides), access=ACCESS_COPY)
    return np.frombuffer(mapped, dtype=np.uint8).reshape(sides)
