"""Counts how often files are really opened, by whatever process, through Linux's inotify."""

import ctypes
import os
import struct
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType

import pytest

IN_OPEN, IN_CLOSE, IS_FOLDER = 0x20, 0x18, 0x40000000
_EVENT = struct.Struct("iIII")


class Opens:
    """Watches the files of one folder while it is entered: `with Opens(folder) as opens: …; opens.counts`."""

    def __init__(self, folder: Path) -> None:
        if not sys.platform.startswith("linux"):
            pytest.skip("only Linux tells which files are opened")
        self._folder = os.fsencode(folder)
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "Opens":
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        # Closing is watched too: equal events in a row are told only once.
        assert libc.inotify_add_watch(self._fd, self._folder, IN_OPEN | IN_CLOSE) > 0, ctypes.get_errno()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while data := os.read(self._fd, 1 << 20):
                self._count(data)
        except BlockingIOError:
            pass
        finally:
            os.close(self._fd)

    def _count(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            _, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            if mask & IN_OPEN and not mask & IS_FOLDER:
                self.counts[name] += 1
