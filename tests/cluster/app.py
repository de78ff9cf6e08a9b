"""A Spark application on two executors with a GPU each, run by the tests in a process of its own.

`python -m tests.cluster.app FOLDER FLAGS_AS_JSON` captions the clips of FOLDER three times, under three
prompts: plainly, with a Python worker killed meanwhile, and after the workers have died of idleness. It
writes what it saw to FOLDER/seen.json.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyspark
from pyspark.sql import SparkSession

from conf.loading import load_settings
from jobs import run
from jobs.session import delta_package
from udfs.engine.runtime import read_loads, runtime_dir

ROOT = Path(__file__).parents[2]
IDLE_S = 80
"""Spark ends a Python worker that has been idle for 60 s."""


def session(folder: Path) -> SparkSession:
    """Two executors on this machine; each is given one GPU, which the CPU stands in for."""
    discovery = folder / "gpus.sh"
    discovery.write_text('#!/bin/sh\necho \'{"name": "gpu", "addresses": ["0"]}\'\n')
    discovery.chmod(0o755)
    settings = {
        "spark.jars.packages": delta_package(pyspark.__version__),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m",
        "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m",
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.worker.resource.gpu.amount": "1",
        "spark.worker.resource.gpu.discoveryScript": str(discovery),
        "spark.executor.resource.gpu.amount": "1",
        "spark.task.resource.gpu.amount": "1",
        "spark.executorEnv.PYTHONPATH": str(ROOT),
        "spark.executorEnv.CAPTIONLAKE_RUNTIME_DIR": os.environ["CAPTIONLAKE_RUNTIME_DIR"],
    }
    builder = SparkSession.builder.appName("cluster-test").master("local-cluster[2,1,1500]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def python_workers() -> dict[int, int]:
    """Python workers of Spark on this machine that are ours: process id to the executor's."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().decode().replace("\0", " ")
            except OSError:
                continue
    daemons = {pid for pid, name in names.items() if "pyspark.daemon" in name}
    executors = {pid for pid, name in names.items() if "CoarseGrainedExecutorBackend" in name}
    return {
        pid: parents[parent]
        for pid, parent in parents.items()
        if pid in daemons and parent in daemons and parents[parent] in executors
    }


def kill_one_when_busy(records: Path, killed: list[int], stop: threading.Event) -> None:
    """Kills one Python worker after the first answers of the running job."""
    before = len(list(records.glob("captions/*/stage1.json")))
    while not stop.wait(0.05):
        workers = python_workers()
        if len(list(records.glob("captions/*/stage1.json"))) > before + 3 and workers:
            victim = max(workers)
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)
            return


def main(folder: Path, flags: dict[str, Any]) -> None:
    """Runs the application."""
    spark = session(folder)
    seen: dict[str, Any] = {"loads": [], "counts": [], "killed": [], "workers": []}

    def caption(prompt: str) -> None:
        records = folder / "records" / prompt.split()[0].lower()
        more = {"--captioning-prompt-text": prompt, "--record-dir": str(records)}
        report = run.run(spark, load_settings(flags=flags | more))
        seen["counts"].append(report.counts)
        seen["loads"].append(read_loads())
        seen["workers"].append(sorted(python_workers()))

    caption("First prompt?")
    stop = threading.Event()
    killed: list[int] = seen["killed"]
    killer = threading.Thread(target=kill_one_when_busy, args=(folder / "records" / "second", killed, stop))
    killer.start()
    caption("Second prompt?")
    stop.set()
    killer.join()
    time.sleep(IDLE_S)
    seen["workers_after_idling"] = sorted(python_workers())
    caption("Third prompt?")
    seen["executors"] = sorted(set(python_workers().values()))
    seen["runtime_dir"] = str(runtime_dir())
    spark.stop()
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
