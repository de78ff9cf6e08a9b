"""A cluster on this machine whose executors have a card each, for the whole job in Spark."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark

from conf.engine import EngineSettings
from conf.loading import load_settings
from udfs.engine.slot import NVIDIA_DEVICE

ROOT = Path(__file__).resolve().parents[2]
DISCOVERY = ROOT / "tools" / "gpus.sh"
CLUSTER = ROOT / "conf" / "gpu_cluster.yaml"
CORES = 8
HEAP_MIB = 8192
SMALL_HEAP_MIB = 1500


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
