"""Looking at something again and again while something else is measured."""

import threading
from abc import ABC, abstractmethod
from typing import Self


class Watcher(ABC):
    """Looks every so often, in a thread of its own, while it is entered; for the first time at once.

    Args:
        every_s: seconds between two looks.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @abstractmethod
    def look(self) -> bool:
        """Looks once; returns whether that was enough."""

    def _watch(self) -> None:
        while not (self.look() or self._stop.wait(self._every_s)):
            pass
