"""Throughput in Spark: windows and previews of many clips, beside bare processes on as many cores.

`python -m benchmarks.spark_path` from the root of a checkout makes one clip and copies it. Two bare processes
work on the copies first, then `captionlake run --generate-previews` on `local[2]`; the start of the session
and the ingest are not counted. The figures go into `benchmarks/results/cpu_path.json`, under `spark`.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cpu_path import machine, save
from benchmarks.measuring import measure
from benchmarks.moving_clips import DEFAULT_CLIPS, make_case
from benchmarks.watching import Watcher
from conf.loading import load_settings
from jobs import ingest, run
from jobs.session import get_session

CORES = 2
CLIP = DEFAULT_CLIPS[0]
POLL_S = 2.0


class Memory(Watcher):
    """Samples the resident memory of this process's Python descendants, in MiB."""

    def __init__(self) -> None:
        super().__init__(POLL_S)
        self.samples: list[float] = []

    def look(self) -> bool:
        """Takes a sample."""
        self.samples.append(sum(_python_descendants_mib()))
        return False


def _python_descendants_mib() -> list[float]:
    parents, sizes = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            name = (folder / "cmdline").read_bytes()
            sizes[int(folder.name)] = int(stat[21]) * 4096 / 2**20 if b"pyspark" in name else 0.0
            parents[int(folder.name)] = int(stat[1])
        except OSError:
            continue
    return [size for pid, size in sizes.items() if size and _descends(pid, os.getpid(), parents)]


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == ancestor:
            return True
    return False


def bare(paths: list[Path]) -> float:
    """Clips per second of as many bare processes as there are cores."""
    shares = [[str(path) for path in paths[core::CORES]] for core in range(CORES)]
    with ThreadPoolExecutor(CORES) as pool:
        costs = list(pool.map(lambda share: measure("benchmarks.works:windows_and_previews", *share), shares))
    assert sum(cost.output for cost in costs) == len(paths)
    return len(paths) / max(cost.wall_s for cost in costs)


def in_spark(folder: Path, lake: Path) -> tuple[float, list[float]]:
    """Clips per second of the job, and the memory of the Python workers on the way."""
    flags: dict[str, Any] = {"--output-path": str(lake), "--master": f"local[{CORES}]"}
    settings = load_settings(flags={**flags, "--input-path": (str(folder),)})
    spark = get_session(settings.spark)
    ingest.run(spark, settings)
    with Memory() as memory:
        start = time.monotonic()
        report = run.run(spark, load_settings(flags={**flags, "--generate-previews": True}))
        seconds = time.monotonic() - start
    count = report.counts["previews.success"]
    assert count == report.counts["windows.success"]
    spark.stop()
    return count / seconds, memory.samples


def main(argv: list[str] | None = None) -> int:
    """Runs both and prints the figures."""
    parser = argparse.ArgumentParser(description="Windows and previews in Spark beside bare processes.")
    parser.add_argument("--clips", type=int, default=200, help="number of clips")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="spark_path-") as temporary:
        folder = Path(temporary) / "clips"
        folder.mkdir()
        original = make_case(CLIP, Path(temporary))
        paths = [folder / f"{at:04d}.mp4" for at in range(given.clips)]
        for path in paths:
            shutil.copyfile(original, path)
        alone = bare(paths)
        jobs, samples = in_spark(folder, Path(temporary) / "lake")
    third = max(1, len(samples) // 3)
    figures = {
        "clips": given.clips,
        "bare_clips_per_s": round(alone, 2),
        "spark_clips_per_s": round(jobs, 2),
        "share": round(jobs / alone, 3),
        "workers_peak_mib_first_third": round(max(samples[:third], default=0.0)),
        "workers_peak_mib_last_third": round(max(samples[-third:], default=0.0)),
    }
    save([], spark=figures | {"load_at_end": machine()["load_at_start"]})
    sys.stdout.write(f"{figures}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
