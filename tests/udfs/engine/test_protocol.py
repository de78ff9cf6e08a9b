"""Frames that arrive torn, swapped or shrunk would be captioned as if they were the clip's."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.engine import protocol
from udfs.engine.protocol import Decoder, ProtocolError


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@given(
    texts=st.lists(st.text(max_size=40), min_size=1, max_size=5),
    cuts=st.lists(st.integers(min_value=1, max_value=17), min_size=1),
)
def test_messages_survive_any_portions(texts: list[str], cuts: list[int]) -> None:
    stream = b"".join(protocol.encode({"type": "t", "text": text}) for text in texts)
    decoder, got, at, turn = Decoder(), [], 0, 0
    while at < len(stream):
        end = at + cuts[turn % len(cuts)]
        got += [message.body["text"] for message in decoder.feed(stream[at:end])]
        at, turn = end, turn + 1
    assert got == texts


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", protocol.HEADER.pack(b"CLK1", 1 << 31, 0), b"CLK1" * 9]
)
def test_a_stranger_on_the_socket_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(data)


@pytest.mark.parametrize("payload", [b"{]", b"[1]", b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(protocol.HEADER.pack(protocol.MAGIC, len(payload), 0) + payload)


def test_announced_descriptors_must_come() -> None:
    with pytest.raises(ProtocolError, match="descriptors"):
        Decoder().feed(protocol.encode({"type": "ask"}, num_fds=1))


def test_frames_cross_the_socket_unchanged_and_leak_no_descriptor() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 28, 56, 3), dtype=np.uint8)
    before = open_fds()
    here, there = socket.socketpair()
    with here, there:
        for number in range(20):
            fd = protocol.share_frames(frames + np.uint8(number))
            protocol.send(here, {"type": "ask", "id": number}, (fd,))
            os.close(fd)
        decoder, messages = Decoder(), []
        while len(messages) < 20:
            messages += decoder.feed(*protocol.receive(there))
    for number, message in enumerate(messages):
        assert message.body["id"] == number
        assert (protocol.map_frames(message.fds[0], frames.shape) == frames + np.uint8(number)).all()
        message.close()
    assert open_fds() == before


def test_frames_that_do_not_lie_in_one_piece_are_shared_right() -> None:
    frames = np.arange(4 * 28 * 28 * 3, dtype=np.uint8).reshape(4, 28, 28, 3)[:, ::-1]
    fd = protocol.share_frames(frames)
    assert (protocol.map_frames(fd, frames.shape) == frames).all()
    os.close(fd)


def test_nobody_can_change_or_shrink_frames_once_they_are_handed_over() -> None:
    fd = protocol.share_frames(np.zeros((1, 4, 4, 3), np.uint8))
    for change in (lambda: os.ftruncate(fd, 1), lambda: os.pwrite(fd, b"x", 0)):
        with pytest.raises(PermissionError):
            change()
    os.close(fd)


@pytest.mark.parametrize(
    "shape", [(1, 4, 4, 3), (3, 4, 4, 3), (2, 4, 4, 1), (2, 4, 12), (2, -4, -4, 3), (1 << 40, 9, 9, 3)]
)
def test_frames_of_another_size_than_declared_are_refused(shape: tuple[int, ...]) -> None:
    fd = protocol.share_frames(np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ProtocolError):
        protocol.map_frames(fd, shape)
    os.close(fd)


def test_a_memfd_that_its_sender_could_still_shrink_is_refused() -> None:
    fd = os.memfd_create("open")
    os.write(fd, bytes(48))
    with pytest.raises(ProtocolError, match="sealed"):
        protocol.map_frames(fd, (1, 4, 4, 3))
    os.close(fd)


def test_a_file_or_a_pipe_instead_of_a_memfd_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(48))
    file, (read_end, write_end) = os.open(tmp_path / "f", os.O_RDONLY), os.pipe()
    for fd in (file, read_end):
        with pytest.raises(ProtocolError):
            protocol.map_frames(fd, (1, 4, 4, 3))
    for fd in (file, read_end, write_end):
        os.close(fd)


def test_a_mapped_array_is_a_private_copy() -> None:
    fd = protocol.share_frames(np.zeros((1, 4, 4, 3), np.uint8))
    protocol.map_frames(fd, (1, 4, 4, 3))[:] = 7
    assert not protocol.map_frames(fd, (1, 4, 4, 3)).any()
    os.close(fd)
