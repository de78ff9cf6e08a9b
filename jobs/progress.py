"""Progress of long work on stderr: a bar on a terminal, a line every few seconds elsewhere."""

import logging
import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


class Progress:
    """Shows how far a stage is.

    Args:
        name: the stage.
        total: how many units there are.
        unit: what is counted, in the plural.
    """

    def __init__(self, name: str, *, total: int, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._done = 0
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._bar = _bar() if sys.stderr.isatty() else None
        self._thread = threading.Thread(target=self._lines, daemon=True)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(f"{self._name} ({self._unit})", total=self._total)
        else:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._bar:
            self._bar.stop()
        else:
            self._thread.join()
        if error is None:
            self._line()

    def advance(self, count: int) -> None:
        """Says that `count` more units are done."""
        with self._lock:
            self._done += count
        if self._bar:
            self._bar.advance(self._task, count)

    def _lines(self) -> None:
        while not self._stop.wait(LINE_EVERY_S):
            self._line()

    def _line(self) -> None:
        elapsed = time.monotonic() - self._start
        log.info(
            "stage=%s done=%d/%d %s elapsed_s=%.0f", self._name, self._done, self._total, self._unit, elapsed
        )


def _bar() -> RichProgress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return RichProgress(*columns, console=Console(stderr=True))
