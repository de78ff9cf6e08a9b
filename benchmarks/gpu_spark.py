"""The whole job in Spark, from Delta to Delta, on the cards of one machine.

`benchmarks.gpu_captions` starts a process for each number of cards. It takes its order as JSON on the command
line, starts a cluster of executors with a card each, as `conf/gpu_cluster.yaml` has them, ingests clips, runs
`captionlake run --generate-captions`, looks into the tables, and prints one line of JSON.

A job has one length for all answers. Here it is the mean of the workload's lengths, since a model of made-up
weights goes on until it is stopped. Without a card the addresses are made up, and engines run on the CPU.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyspark
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from benchmarks.gpu_card import Card
from benchmarks.gpu_clients import TICKS_PER_S
from benchmarks.gpu_work import PROMPT, RULE, WORKLOADS, CaptionWorkload
from benchmarks.moving_clips import make_case
from conf.engine import EngineSettings
from conf.errors import EngineError
from conf.loading import load_settings
from jobs import ingest, run
from jobs.lake import Lake
from jobs.models import caption_engine
from jobs.precision import with_effective_precision
from jobs.session import get_session, parallelism
from schemas.captions import CAPTIONS
from schemas.runs import RUNS
from udfs.cutting import ClipRef, cut_clip
from udfs.engine.client import EngineClient
from udfs.engine.runtime import (
    RUNTIME_DIR_VARIABLE,
    group_members,
    kill_group,
    log_tail,
    read_holder,
    read_loads,
    runtime_dir,
)
from udfs.engine.slot import NVIDIA_DEVICE, PROC, Slot
from udfs.video import Limits

ROOT = Path(__file__).resolve().parents[1]
DISCOVERY = ROOT / "tools" / "gpus.sh"
CLUSTER = ROOT / "conf" / "gpu_cluster.yaml"
CORES = 8
HEAP_MIB = 8192
SMALL_HEAP_MIB = 1500
BATCH = 16
READY_MARK = "READY"
FIGURES_MARK = "FIGURES "
EXECUTORS_S = 180.0
LEAVING_S = 60.0
POLL_S = 0.5
EARLY_SHARE = 0.01

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SparkOrder:
    """What one process does.

    Attributes:
        settings: of Captionlake's engine; the job's are made from them.
        work: name of the workload.
        folder: where its clip and its checkpoint are.
        place: folder for clips, lake and logs.
        addresses: of the cards; one executor gets each.
        cores: of each executor.
        heap_mib: of each executor.
        windows: of all cards together, rounded up to whole clips.
    """

    settings: dict[str, Any]
    work: str
    folder: str
    place: str
    addresses: Sequence[str]
    cores: int
    heap_mib: int
    windows: int

    @classmethod
    def of_machine(
        cls, settings: EngineSettings, work: str, folder: Path, *, cards: int, windows: int
    ) -> "SparkOrder":
        """The order for the first cards of this machine, with `windows` for each."""
        has_cards = NVIDIA_DEVICE.exists()
        return cls(
            settings=settings.model_dump(mode="json"),
            work=work,
            folder=str(folder.absolute()),
            place=str(folder.absolute() / f"spark_{cards}"),
            addresses=addresses_of(cards) if has_cards else tuple(map(str, range(cards))),
            cores=min(CORES, max(1, (os.cpu_count() or 1) // cards)),
            heap_mib=HEAP_MIB if has_cards else SMALL_HEAP_MIB,
            windows=cards * windows,
        )


def addresses_of(cards: int) -> tuple[str, ...]:
    """Addresses of the first cards of this machine, as the product's discovery script tells them.

    Raises:
        RuntimeError: it has fewer cards.
    """
    shown = subprocess.run(
        ["/bin/sh", str(DISCOVERY)], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    found = tuple(json.loads(shown)["addresses"])
    if len(found) < cards:
        raise RuntimeError(f"{cards} cards are asked for, and this machine has {len(found)}: {shown}")
    return found[:cards]


def write_discovery(path: Path, addresses: Sequence[str]) -> Path:
    """Writes a script that tells Spark of these cards alone, through the product's own script."""
    path.write_text(f"#!/bin/sh\nCUDA_VISIBLE_DEVICES={','.join(addresses)} exec sh '{DISCOVERY}'\n")
    path.chmod(0o755)
    return path


def spark_properties(order: SparkOrder, discovery: Path, environment: dict[str, str]) -> dict[str, str]:
    """Properties of a cluster on this machine whose executors have a card each."""
    properties = dict(text.split("=", 1) for text in load_settings(config=str(CLUSTER)).spark.properties)
    cards = len(order.addresses)
    properties |= {
        "spark.worker.resource.gpu.amount": str(cards),
        "spark.worker.resource.gpu.discoveryScript": str(discovery),
        "spark.executor.instances": str(cards),
        "spark.executor.cores": str(order.cores),
        "spark.task.resource.gpu.amount": f"{task_share(order.cores):g}",
        "spark.executor.memory": f"{order.heap_mib}m",
        **{f"spark.executorEnv.{name}": value for name, value in environment.items()},
    }
    if any((spark_home() / "jars").glob("*delta-spark*.jar")):
        # Delta is beside Spark, and nothing has to be fetched.
        properties["spark.jars.packages"] = ""
    return properties


def task_share(cores: int) -> float:
    """What a task takes of its executor's card; never so much that a core has none.

    >>> task_share(8), task_share(6)
    (0.125, 0.166666)
    """
    return int(1e6 / cores) / 1e6


def spark_home() -> Path:
    """The folder of the Spark that PySpark starts."""
    return Path(os.environ.get("SPARK_HOME") or Path(pyspark.__file__).resolve().parent)


def spark_master(order: SparkOrder) -> str:
    """One worker with as many cores and as much memory as the executors have together."""
    cards = len(order.addresses)
    return f"local-cluster[1,{cards * order.cores},{cards * order.heap_mib}]"


def job_flags(order: SparkOrder) -> dict[str, Any]:
    """Flags of `captionlake run` that say what the engine's settings say."""
    work, engine = _work(order), EngineSettings(**order.settings)
    return {
        "--output-path": f"{order.place}/lake",
        "--generate-captions": True,
        "--model-variant": work.variant.name,
        "--model-dir": engine.model_path.removesuffix(f"/{work.variant.caption_model_id}"),
        "--captioning-prompt-text": PROMPT,
        "--captioning-max-output-tokens": answer_tokens(work),
        "--captioning-batch-size": BATCH,
        "--captioning-use-fp8-weights": engine.fp8,
        "--captioning-use-vllm-mmcache": not engine.disable_mmcache,
        "--dtype": engine.dtype,
        "--max-in-flight": engine.max_in_flight,
        "--vllm-argument": tuple(f"{name}={json.dumps(v)}" for name, v in engine.vllm_arguments.items()),
    }


def _work(order: SparkOrder) -> CaptionWorkload:
    work = WORKLOADS[order.work]
    assert isinstance(work, CaptionWorkload)
    return work


def answer_tokens(work: CaptionWorkload) -> int:
    """Tokens of every answer: a job has one length for all."""
    return round(sum(work.tokens) / 2)


def copy_clips(work: CaptionWorkload, folder: Path, clips: Path, windows: int) -> int:
    """Gives the workload's clip names in `clips` until they make `windows` windows; returns how many."""
    original = make_case(work.clip, folder)
    each = len(cut_clip(ClipRef("clip", 0, None, None, str(original)), RULE, Limits()))
    count = -(-windows // each)
    clips.mkdir(parents=True)
    for number in range(count):
        path = clips / f"{number:05}.mp4"
        try:
            path.hardlink_to(original)
        except OSError:
            shutil.copyfile(original, path)
    return count * each


class Starts:
    """Notices when the engines are ready, and what CPU time they have used by then, while it is entered.

    Attributes:
        at_ready: `cpu_s` when as many engines as there are cards have been loaded; None before.
    """

    def __init__(self, cards: int) -> None:
        self.at_ready: dict[str, float] | None = None
        self._cards = cards
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Starts":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            loads = read_loads()
            if len(loads) >= self._cards:
                self.at_ready = cpu_s({load["pid"] for load in loads})
                print(READY_MARK, flush=True)
                return


def cpu_s(hosts: Collection[int]) -> dict[str, float]:
    """CPU seconds so far of the cluster: Python workers, JVMs, and the sessions that `hosts` lead."""
    stats: dict[int, tuple[str, list[str]]] = {}
    for entry in PROC.glob("[0-9]*"):
        with suppress(OSError):
            start, _, rest = (entry / "stat").read_text().rpartition(")")
            stats[int(entry.name)] = (start.partition("(")[2], rest.split())
    used = {"workers": 0.0, "java": 0.0, "host": 0.0, "engine": 0.0}
    for pid, (command, fields) in stats.items():
        if int(fields[3]) in hosts:
            name = "host" if pid in hosts else "engine"
        elif _is_mine(pid, stats):
            name = "java" if command == "java" else "workers"
        else:
            continue
        # Children that have ended included.
        used[name] += sum(map(int, fields[11:15])) / TICKS_PER_S
    return used


def _is_mine(pid: int, stats: dict[int, tuple[str, list[str]]]) -> bool:
    """Whether this process is an ancestor of `pid`."""
    while pid in stats:
        pid = int(stats[pid][1][1])
        if pid == os.getpid():
            return True
    return False


def start_s(loads: Sequence[dict[str, Any]]) -> float:
    """Seconds from when the first engine began to load until the first one was ready; 0 without any.

    Until then no window can be answered. What later engines took longer counts as the job's time.

    >>> start_s([{"time": 160.0, "seconds": 50.0}, {"time": 150.0, "seconds": 45.0}])
    45.0
    """
    if not loads:
        return 0.0
    return float(min(load["time"] for load in loads) - min(load["time"] - load["seconds"] for load in loads))


def wait_for_executors(spark: SparkSession, order: SparkOrder) -> None:
    """Waits until all executors are there.

    Raises:
        RuntimeError: some have not come.
    """
    wanted, deadline = len(order.addresses) * order.cores, time.monotonic() + EXECUTORS_S
    while (found := parallelism(spark)) < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{found} of {wanted} cores have come in {EXECUTORS_S:.0f} s")
        time.sleep(POLL_S)


def measure(order: SparkOrder) -> dict[str, Any]:
    """Runs the job; returns the figures, with what is wrong with them under `problems`."""
    work, place, cards = _work(order), Path(order.place), len(order.addresses)
    windows = copy_clips(work, Path(order.folder), place / "clips", order.windows)
    environment = {name: os.environ[name] for name in ("PYTHONPATH", RUNTIME_DIR_VARIABLE)}
    properties = spark_properties(order, write_discovery(place / "gpus.sh", order.addresses), environment)
    flags = job_flags(order) | {
        "--master": spark_master(order),
        "--spark-property": tuple(f"{name}={value}" for name, value in properties.items()),
    }
    settings = load_settings(config=str(CLUSTER), flags=flags)
    start = time.monotonic()
    spark = get_session(settings.spark)
    wait_for_executors(spark, order)
    session_s = time.monotonic() - start
    clips = {"--output-path": flags["--output-path"], "--input-path": (str(place / "clips"),)}
    ingested = ingest.run(spark, load_settings(flags=clips))
    # The key of the engines' settings depends on it.
    settings = with_effective_precision(spark, settings)
    with Starts(cards) as starts:
        before, start = cpu_s(()), time.monotonic()
        report = run.run(spark, settings)
        wall_s = time.monotonic() - start
    loads = read_loads()
    waited_s, spent = start_s(loads), cpu_s({load["pid"] for load in loads})
    before |= {name: (starts.at_ready or before)[name] for name in ("host", "engine")}
    engines = [engine_figures(load, caption_engine(settings)) for load in loads]
    said = next((engine for engine in engines if "device" in engine), {})
    rows = captions_of(spark, flags["--output-path"], report.run_id)
    figures = {
        "mode": "spark",
        "cards": cards,
        "cores": order.cores,
        "addresses": sorted(str(engine["address"]) for engine in engines),
        "windows": rows.pop("ids"),
        "windows_per_s": windows / (wall_s - waited_s),
        "windows_per_s_with_start": windows / wall_s,
        "wall_s": wall_s,
        "engine_start_s": waited_s,
        "session_s": session_s,
        "ingest_s": ingested.wall_s,
        "stage_s": report.stage_seconds,
        **rows,
        "cpu_s_per_window": {name: (spent[name] - before[name]) / windows for name in before},
        "versions": {**said.get("versions", {}), "pyspark": pyspark.__version__},
        "device": said.get("device", "unknown"),
        "engines": [
            {name: value for name, value in engine.items() if name not in ("versions", "device")}
            for engine in engines
        ],
    }
    return figures | {"problems": problems(figures, order, windows)}


def engine_figures(load: dict[str, Any], engine: EngineSettings) -> dict[str, Any]:
    """What an engine says of itself, and which card it has, by the name and the lock of its host."""
    owner_pid, owner_start, gpu = load["host"].split("-")
    locks = {path.stem: read_holder(path) for path in runtime_dir().glob("card-*.lock")}
    figures = {
        "address": gpu.removeprefix("g"),
        "locks": [name for name, holder in locks.items() if holder and holder.pid == load["pid"]],
        "start_s": load["seconds"],
    }
    try:
        with EngineClient(engine, Slot(int(owner_pid), int(owner_start), figures["address"])) as client:
            status = client.status()
    except EngineError as error:
        return figures | {"error": str(error)}
    names = ("loads", "output_tokens", "videos_encoded", "busy_s", "precision", "takes_bytes")
    return figures | {name: status[name] for name in (*names, "versions", "device") if name in status}


def captions_of(spark: SparkSession, output_path: str, run_id: str) -> dict[str, Any]:
    """What the tables say of the run."""
    lake = Lake(spark, output_path)
    (row,) = (
        lake.read(CAPTIONS)
        .where(F.col("run_id") == run_id)
        .agg(
            F.count("*").alias("rows"),
            F.countDistinct("window_id").alias("ids"),
            F.count_if(F.col("caption_status") == "error").alias("errors"),
            F.first(F.col("caption_error"), ignorenulls=True).alias("error"),
            F.count_if(F.col("finish_reason") != "length").alias("ended_early"),
            F.avg("prompt_tokens").alias("prompt_tokens"),
            F.avg("output_tokens").alias("output_tokens"),
            F.max("output_tokens").alias("most_output_tokens"),
        )
        .collect()
    )
    (run_row,) = lake.read(RUNS).where(F.col("run_id") == run_id).select("gpu_idle_share").collect()
    return {**row.asDict(), **run_row.asDict()}


def problems(figures: dict[str, Any], order: SparkOrder, windows: int) -> list[str]:
    """What is not as it must be; empty where nothing is."""
    work, found = _work(order), []
    if not figures["windows"] == figures["rows"] == windows:
        found.append(f"{figures['rows']} rows of {figures['windows']} windows, not of {windows}")
    if figures["errors"]:
        found.append(f"{figures['errors']} windows failed: {figures['error']}")
    if figures["addresses"] != sorted(order.addresses):
        found.append(f"engines ran on {figures['addresses']}, not on {sorted(order.addresses)}")
    for engine in figures["engines"]:
        if not engine.get("output_tokens"):
            found.append(f"the engine of card {engine['address']} answered nothing: {engine}")
    if figures["most_output_tokens"] != answer_tokens(work):
        found.append(f"answers have up to {figures['most_output_tokens']} tokens, not {answer_tokens(work)}")
    if work.model is not None and figures["ended_early"] > EARLY_SHARE * windows:
        found.append(f"{figures['ended_early']} answers ended before they had all their tokens")
    return found


def run_spark(order: SparkOrder) -> dict[str, Any]:
    """Carries out the order in a process of its own; returns the figures, those of the cards among them.

    Raises:
        RuntimeError: it failed; the ends of all logs are on stderr.
    """
    place = Path(order.place)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with ExitStack() as stack:
        stack.enter_context(_executor_logs(place / "work"))
        runtime = stack.enter_context(_runtime(place))
        cards = {address: stack.enter_context(Card(address)) for address in order.addresses}
        paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {
            "SPARK_LOCAL_IP": "127.0.0.1",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            RUNTIME_DIR_VARIABLE: str(runtime),
        }
        command = [sys.executable, "-m", "benchmarks.gpu_spark", json.dumps(asdict(order))]
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=place)
        )
        figures = _figures(process, cards)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LEAVING_S)
        process.kill()
    if figures is None:
        _show_logs(place)
        raise RuntimeError(f"the job in Spark failed with code {process.returncode}; its logs are in {place}")
    if process.returncode:
        figures["problems"].append(f"the job's process ended with code {process.returncode}; see {place}")
    return figures


def _figures(process: "subprocess.Popen[str]", cards: dict[str, Card]) -> dict[str, Any] | None:
    """What the process prints, and what its cards did once the engines were ready; None where it failed."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(READY_MARK):
            for card in cards.values():
                card.readings.clear()
        elif line.startswith(FIGURES_MARK):
            figures: dict[str, Any] = json.loads(line.removeprefix(FIGURES_MARK))
            for engine in figures["engines"]:
                engine["card"] = cards[engine["address"]].figures() if engine["address"] in cards else {}
            return figures
        else:
            sys.stderr.write(line)
    return None


@contextmanager
def _runtime(place: Path) -> Iterator[Path]:
    """A folder for the engines; when it is left, no engine has a card any more, and logs are in `place`."""
    folder = Path(tempfile.mkdtemp(prefix="captionlake-"))
    try:
        yield folder
    finally:
        deadline = time.monotonic() + LEAVING_S
        for holder in filter(None, map(read_holder, folder.glob("*.lock"))):
            while group_members(holder) and time.monotonic() < deadline:
                time.sleep(POLL_S)
            kill_group(holder)
        for path in folder.glob("*.log"):
            shutil.copy(path, place)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _executor_logs(folder: Path) -> Iterator[None]:
    """Moves what the executors have written to `folder`: a cluster in one process keeps it beside Spark."""
    work = spark_home() / "work"
    before = set(work.glob("app-*"))
    try:
        yield
    finally:
        folder.mkdir()
        for application in set(work.glob("app-*")) - before:
            shutil.move(application, folder)
        with suppress(OSError):
            work.rmdir()


def _show_logs(place: Path) -> None:
    for path in (*sorted(place.glob("work/*/*/stderr")), *sorted(place.glob("*.log"))):
        sys.stderr.write(f"\n== the end of {path}\n{log_tail(path, num_lines=60)}\n")


def main() -> None:
    """Carries out the order."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("py4j").setLevel(logging.WARNING)
    try:
        figures = measure(SparkOrder(**json.loads(sys.argv[1])))
        print(FIGURES_MARK + json.dumps(figures), flush=True)
    finally:
        if (spark := SparkSession.getActiveSession()) is not None:
            spark.stop()


if __name__ == "__main__":
    main()
