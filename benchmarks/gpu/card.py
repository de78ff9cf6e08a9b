"""What `nvidia-smi` says of a card while something is measured."""

import subprocess
import threading
from dataclasses import dataclass, field


@dataclass
class Card:
    """What `nvidia-smi` says once a second while it is entered: how busy the card is, its power and clock.

    Attributes:
        address: of the card.
        readings: (utilization in percent, power in watts, clock of its multiprocessors in MHz).
    """

    address: str
    readings: list[tuple[float, float, float]] = field(default_factory=list)
    _process: "subprocess.Popen[str] | None" = None

    def __enter__(self) -> "Card":
        asked = "--query-gpu=utilization.gpu,power.draw,clocks.sm"
        smi = ["nvidia-smi", f"--id={self.address}", asked, "--format=csv,noheader,nounits", "--loop-ms=1000"]
        try:
            self._process = subprocess.Popen(smi, stdout=subprocess.PIPE, text=True)
        except FileNotFoundError:
            return self
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            used, watts, clock = map(float, line.split(","))
            self.readings.append((used, watts, clock))

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def figures(self) -> dict[str, float]:
        """Means over all readings; empty without a card."""
        columns = list(zip(*self.readings, strict=True))
        names = ("utilization_percent", "power_w", "sm_clock_mhz")
        return {name: round(sum(column) / len(column)) for name, column in zip(names, columns, strict=False)}
