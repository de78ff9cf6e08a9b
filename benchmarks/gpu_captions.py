"""Windows per second of one card: the peer's way, the card alone, and Captionlake's engine.

    python -m benchmarks.gpu_captions [--fp8] [--modes MODE ...]
        [--work qwen|qwen3|qwen_text|demo|demo_text] [--candidates [NAME ...]]

Each mode captions windows of real clips with as many tokens as its answers are to have, by a model of the
published dimensions with made-up weights. Modes:

    peer_chunks_16, peer_chunks_8   prepared frames, `LLM.generate` with 16 or 8 windows at a time
    llm_all_at_once                 `LLM.generate` with everything, with the peer's settings
    gpu_alone                       everything rendered before: what the card does under our settings
    engine                          Captionlake's engine, fed by 1, 4 and 8 client processes that decode clips
    spark                           the whole job in Spark, from Delta to Delta, on 1 card or on `--cards`

The last one needs Java and runs only when it is named; every answer then has the mean of the others' tokens.
`--candidates` has `gpu_alone` run again with other settings, one change at a time.

`--work qwen_text` enhances captions instead, one for each window: `llm_all_at_once`, with as many in flight
as the engine has, and `engine`, whose clients have captions in memory.

Prints a table, and writes `benchmarks/results/gpu_captions.json`. `--work demo` and `--work demo_text` try
all of it on a machine without a card.
"""

import argparse
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gpu.candidates import CANDIDATES
from benchmarks.gpu.card import Card
from benchmarks.gpu.clients import Engine
from benchmarks.gpu.llm import BEGIN_MARK, PROFILE_MARK, LLMOrder, command
from benchmarks.gpu.work import PEER, SPARK, WORKLOADS, CaptionWorkload
from conf.engine import EngineSettings, vllm_argument
from udfs.engine.launch import host_environment
from udfs.engine.runtime import Place
from udfs.engine.slot import NVIDIA_DEVICE, Slot

RESULTS = Path(__file__).parent / "results" / "gpu_captions.json"
MODES = (*CaptionWorkload.modes, *CaptionWorkload.named_modes)
SPARK_WINDOWS = 2100


def main(argv: list[str] | None = None) -> int:
    """Runs the modes and prints the figures."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given = parse_arguments(argv)
    work, results = WORKLOADS[given.work], Results(given.results, given.work, run=given.run, add=given.add)
    folder = Path(given.folder or tempfile.mkdtemp(prefix="gpu_captions-"))
    folder.mkdir(parents=True, exist_ok=True)
    work.prepare(folder)
    more = dict(map(vllm_argument, given.vllm_argument))
    settings = work.settings(
        folder, fp8=given.fp8, max_in_flight=given.max_in_flight, dtype=given.dtype, vllm_arguments=more
    )
    precision = "fp8" if given.fp8 else {"bfloat16": "bf16"}.get(given.dtype, given.dtype)
    order = LLMOrder(settings.model_dump(mode="json"), given.work, str(folder))
    if peer := {name: given.peer_windows for name in PEER if name in given.modes}:
        results.add_all(run_llm(replace(order, modes=peer), given.card), precision, "the peer's")
    told = _told(settings)
    if "gpu_alone" in given.modes:
        traces = folder.absolute() / f"profile_{precision}"
        shutil.rmtree(traces, ignore_errors=True)
        alone = replace(
            order, modes={"gpu_alone": given.windows}, profile=str(traces) if given.profile else None
        )
        results.add_all(run_llm(alone, given.card), precision, told)
    failed = try_candidates(given, settings, order, results, precision)
    if "engine" in given.modes:
        results.add_all(run_engine(given, settings, folder), precision, told)
    if SPARK in given.modes:
        results.add_all(run_cards(given, settings, folder), precision, told)
    results.show()
    problems = [*failed, *results.problems()]
    for problem in problems:
        logging.error("%s", problem)
    return 1 if problems else 0


def run_llm(order: LLMOrder, card: str) -> Iterator[dict[str, Any]]:
    """Runs modes in a process of their own; yields what each cost, and a profile behind its mode."""
    slot = _slot(card)
    environment = host_environment(slot, Place.of(slot, "benchmark"), sys.executable)
    del environment["VLLM_RPC_BASE_PATH"]  # a folder of the host's
    if order.profile is not None:
        environment["VLLM_CUSTOM_SCOPES_FOR_PROFILING"] = "1"
    with (
        Card(card) as readings,
        subprocess.Popen(command(order), stdout=subprocess.PIPE, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(BEGIN_MARK):
                readings.readings.clear()
            elif line.startswith("{"):
                yield json.loads(line) | {"card": readings.figures()}
            elif line.startswith(PROFILE_MARK):
                yield {"profile_ms_per_window": json.loads(line.removeprefix(PROFILE_MARK))}
            else:
                sys.stderr.write(line)
    if process.returncode:
        raise RuntimeError(f"{list(order.modes)} failed with code {process.returncode}")


def try_candidates(
    given: argparse.Namespace, settings: EngineSettings, order: LLMOrder, results: "Results", precision: str
) -> list[str]:
    """Runs the card alone with each change of settings; returns what went wrong, which stops no other."""
    problems = []
    for name in given.candidates:
        changed = CANDIDATES[name].settings(settings)
        changed_order = replace(
            order, settings=changed.model_dump(mode="json"), modes={"gpu_alone": given.windows}
        )
        try:
            figures = [one | {"candidate": name} for one in run_llm(changed_order, given.card)]
        except RuntimeError as error:
            problems.append(f"candidate {name}: {error}")
        else:
            results.add_all(figures, precision, _told(changed))
    return problems


def run_engine(given: argparse.Namespace, settings: EngineSettings, folder: Path) -> Iterator[dict[str, Any]]:
    """Runs Captionlake's engine with each number of clients; yields what each cost."""
    work = WORKLOADS[given.work]
    windows = len(work.window_ids(next(work.items(folder))))
    with Engine(settings, _slot(given.card)) as engine:
        for run, clients in enumerate(given.clients):
            with Card(given.card) as card:
                figures = engine.caption(
                    given.work,
                    folder,
                    run=run,
                    clients=clients,
                    items=-(-given.windows // windows),
                    on_begin=card.readings.clear,
                )
            yield figures | {"mode": "engine", "card": card.figures()}


def _slot(card: str) -> Slot:
    return Slot.of_process(gpu=card if NVIDIA_DEVICE.exists() else None)


def run_cards(given: argparse.Namespace, settings: EngineSettings, folder: Path) -> Iterator[dict[str, Any]]:
    """Runs the job in Spark with each number of cards; yields what each cost."""
    from benchmarks.gpu.cluster import SparkOrder
    from benchmarks.gpu.spark import run_spark

    for cards in given.cards:
        yield run_spark(
            SparkOrder.of_machine(settings, given.work, folder, cards=cards, windows=given.spark_windows)
        )


def _told(settings: EngineSettings) -> str:
    more = {name: value for name, value in settings.vllm_arguments.items() if name != "load_format"}
    return json.dumps({"max_in_flight": settings.max_in_flight, **more})


class Results:
    """The figures of all modes, in a file and in a table."""

    def __init__(self, path: Path, work: str, *, run: str = "", add: bool = False) -> None:
        self.path = path
        self.known = {"work": work} | ({"run": run} if run else {})
        self.modes: list[dict[str, Any]] = json.loads(path.read_text())["modes"] if add else []
        self.old = len(self.modes)

    def add_all(self, figures: Iterable[dict[str, Any]], precision: str, settings: str) -> None:
        """Adds modes as they end."""
        for one in figures:
            if "mode" in one:
                known = {
                    "mode": f"{one.pop('mode')}_{precision}",
                    **self.known,
                    "settings": settings,
                    "measured": time.strftime("%Y-%m-%d %H:%M"),
                    "cpus": os.cpu_count(),
                }
                self.modes.append(_rounded(known | one))
            else:
                self.modes[-1].update(_rounded(one))
            logging.info("%s", json.dumps(self.modes[-1]))
            self._write()

    def _write(self) -> None:
        document = {
            "machine": {
                "device": self.modes[-1]["device"],
                "python": platform.python_version(),
            },
            "versions": self.modes[-1]["versions"],
            "modes": self.modes,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def problems(self) -> list[str]:
        """What the modes of this run say is wrong with their figures."""
        return [problem for one in self.modes[self.old :] for problem in one.get("problems", [])]

    def show(self) -> None:
        """Prints the table; ratios are to the first mode of the run."""
        table = Table()
        headings = (
            "mode",
            "clients",
            "cards",
            "windows/s",
            "ratio",
            "tokens/s",
            "idle",
            "CPU s/window",
            "start s",
            "settings",
        )
        for heading in headings:
            table.add_column(heading, overflow="fold")
        first = self.modes[self.old]["windows_per_s"]
        for one in self.modes[self.old :]:
            idle = one.get("gpu_idle_share")
            table.add_row(
                one["mode"],
                str(one.get("clients", "")),
                str(one.get("cards", "")),
                f"{one['windows_per_s']:.2f}",
                f"{one['windows_per_s'] / first:.2f}",
                f"{one['windows_per_s'] * one['output_tokens']:.0f}",
                "" if idle is None else f"{100 * idle:.1f} %",
                "\n".join(f"{name} {value:.3f}" for name, value in one["cpu_s_per_window"].items()),
                f"{one['engine_start_s']:.0f}",
                one["settings"],
            )
        Console(width=140).print(table)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return value


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Returns what is given, with defaults that fit the work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", choices=sorted(WORKLOADS), default="qwen", help="model and clips or captions"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, help="what to run; all that the work has")
    parser.add_argument("--fp8", action="store_true", help="FP8 weights, for the peer as well")
    parser.add_argument("--dtype", default="bfloat16", help="type of weights and activations")
    parser.add_argument("--windows", type=int, help="of gpu_alone and engine")
    parser.add_argument("--peer-windows", type=int, help="of each of the peer's modes")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8], help="client processes")
    parser.add_argument("--card", default="0", help="address of the card, where there are several")
    parser.add_argument("--cards", type=int, nargs="+", default=[1], help="of spark, one after the other")
    parser.add_argument("--spark-windows", type=int, default=SPARK_WINDOWS, help="of spark, for each card")
    parser.add_argument("--max-in-flight", type=int, default=128, help="of Captionlake's engine")
    parser.add_argument(
        "--vllm-argument", action="append", default=[], metavar="NAME=VALUE", help="more, for our modes"
    )
    parser.add_argument(
        "--candidates",
        nargs="*",
        choices=CANDIDATES,
        metavar="NAME",
        help=f"changes to try with gpu_alone: {', '.join(CANDIDATES)}; without a name all that apply",
    )
    parser.add_argument("--profile", action="store_true", help="profile gpu_alone as well")
    parser.add_argument("--folder", help="for clips and checkpoints; a temporary one when absent")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file for the figures")
    parser.add_argument("--add", action="store_true", help="keep the figures that are in the file")
    parser.add_argument("--run", default="", help="what to call this run in the file")
    given = parser.parse_args(argv)
    if given.profile and not NVIDIA_DEVICE.exists():
        parser.error("--profile needs a card")
    _fill_in(given, parser)
    return given


def _fill_in(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """What depends on the work."""
    work = WORKLOADS[given.work]
    given.modes = given.modes or work.modes
    known = (*work.modes, *work.named_modes)
    if strangers := [mode for mode in given.modes if mode not in known]:
        parser.error(f"--work {given.work} has no mode {strangers[0]}; it has {', '.join(known)}")
    given.windows = given.windows or work.windows
    given.peer_windows = given.peer_windows or work.peer_windows or given.windows
    if given.candidates is None:
        given.candidates = []
    elif "gpu_alone" not in given.modes:
        parser.error("--candidates needs gpu_alone among the modes, to be compared with")
    else:
        apply = [name for name, one in CANDIDATES.items() if given.fp8 or not one.needs_fp8]
        if strangers := [name for name in given.candidates if name not in apply]:
            parser.error(f"{strangers[0]} needs --fp8")
        given.candidates = given.candidates or apply


if __name__ == "__main__":
    sys.exit(main())
