"""The whole job in Spark, in the process that `benchmarks.gpu.spark` starts for it.

Takes its order as JSON on the command line, starts a cluster, ingests clips, runs
`captionlake run --generate-captions`, looks into the tables, and prints one line of JSON.

A job has one length for all answers. Here it is the mean of the workload's lengths, since a model of made-up
weights goes on until it is stopped.
"""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyspark
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from benchmarks.gpu.cluster import CLUSTER, SparkOrder, spark_master, spark_properties, write_discovery
from benchmarks.gpu.processes import cpu_s
from benchmarks.gpu.work import PROMPT, RULE, WORKLOADS, CaptionWorkload
from benchmarks.moving_clips import make_case
from benchmarks.watching import Watcher
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
from udfs.engine.runtime import RUNTIME_DIR_VARIABLE, read_holder, read_loads, runtime_dir
from udfs.engine.slot import Slot
from udfs.video import Limits

BATCH = 16
READY_MARK = "READY"
FIGURES_MARK = "FIGURES "
EXECUTORS_S = 180.0
POLL_S = 0.5
EARLY_SHARE = 0.01


def job_flags(order: SparkOrder) -> dict[str, Any]:
    """Flags of `captionlake run` that say what the engine's settings say."""
    work, engine = work_of(order), EngineSettings(**order.settings)
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


def work_of(order: SparkOrder) -> CaptionWorkload:
    """The workload of the order."""
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


class Starts(Watcher):
    """Notices when the engines are ready, and what CPU time they have used by then.

    Attributes:
        at_ready: `cpu_s` when as many engines as there are cards have been loaded; None before.
    """

    def __init__(self, cards: int) -> None:
        super().__init__(POLL_S)
        self.at_ready: dict[str, float] | None = None
        self._cards = cards

    def look(self) -> bool:
        """Returns whether all engines have been loaded, and says so."""
        loads = read_loads()
        if len(loads) < self._cards:
            return False
        self.at_ready = cpu_s({load["pid"] for load in loads})
        print(READY_MARK, flush=True)
        return True


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
    work, place, cards = work_of(order), Path(order.place), len(order.addresses)
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
    work, found = work_of(order), []
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
