"""Throughput in Spark: windows and previews of many clips, beside bare processes on as many cores.

`python -m benchmarks.spark_path` from the root of a checkout makes one clip of each kind and copies it. Two
bare processes work on the copies first, then `captionlake run --generate-previews` on `local[2]`, in a
session that has ingested them and done nothing else; its start and the ingest are not counted. The figures
go into `benchmarks/results/cpu_path.json`, under `spark`.
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

from benchmarks.cpu_path import RESULTS, machine, save
from benchmarks.measuring import measure
from benchmarks.moving_clips import DEFAULT_CLIPS, MAIN, OTHERS, RECORDED_CLIPS, Case, make_case
from benchmarks.watching import Watcher
from conf.loading import load_settings
from jobs import ingest, run
from jobs.session import get_session

CORES = 2
ONE_WINDOW = 300
"""Frames at most of a clip that is one window."""
KINDS = (RECORDED_CLIPS[0], DEFAULT_CLIPS[0])
CASES = {case.name: case for case in (*MAIN, *OTHERS) if case.num_frames <= ONE_WINDOW}
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


def in_spark(folder: str, lake: str) -> dict[str, Any]:
    """The job over a folder of clips: how many it did, in which time, and its workers' memory on the way."""
    flags: dict[str, Any] = {"--output-path": lake, "--master": f"local[{CORES}]"}
    settings = load_settings(flags={**flags, "--input-path": (folder,)})
    spark = get_session(settings.spark)
    ingest.run(spark, settings)
    with Memory() as memory:
        start = time.monotonic()
        report = run.run(spark, load_settings(flags={**flags, "--generate-previews": True}))
        seconds = time.monotonic() - start
    count = report.counts["previews.success"]
    assert count == report.counts["windows.success"]
    spark.stop()
    return {"windows": count, "seconds": seconds, "memory_mib": memory.samples}


def measure_case(case: Case, copies: int, folder: Path) -> dict[str, Any]:
    """Measures both ways over copies of a clip of one window, in a folder of their own."""
    clips = folder / "clips"
    clips.mkdir(parents=True)
    original = make_case(case, folder)
    paths = [clips / f"{at:04d}{original.suffix}" for at in range(copies)]
    for path in paths:
        shutil.copyfile(original, path)
    alone = bare(paths)
    # In a process of its own: another job before it would have warmed the JVM up.
    job = measure("benchmarks.spark_path:in_spark", str(clips), str(folder / "lake")).output
    assert job["windows"] == copies
    now = machine()
    in_job, samples = copies / job["seconds"], job["memory_mib"]
    third = max(1, len(samples) // 3)
    return {
        "case": case.name,
        "clips": copies,
        "bare_clips_per_s": round(alone, 2),
        "spark_clips_per_s": round(in_job, 2),
        "share": round(in_job / alone, 3),
        "workers_peak_mib_first_third": round(max(samples[:third], default=0.0)),
        "workers_peak_mib_last_third": round(max(samples[-third:], default=0.0)),
        "cpu": now["cpu"],
        "load_at_end": now["load_at_start"],
    }


def main(argv: list[str] | None = None) -> int:
    """Measures the kinds of clips named on the command line and prints the figures."""
    parser = argparse.ArgumentParser(description="Windows and previews in Spark beside bare processes.")
    names = [case.name for case in KINDS]
    parser.add_argument(
        "--clips", nargs="+", choices=CASES, default=names, metavar="NAME", help="kinds of clips"
    )
    parser.add_argument("--copies", type=int, default=200, help="clips of each kind")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON that gets the figures")
    given = parser.parse_args(argv)
    for name in given.clips:
        with tempfile.TemporaryDirectory(prefix="spark_path-") as temporary:
            figures = measure_case(CASES[name], given.copies, Path(temporary))
        save(spark=[figures], path=given.results)
        sys.stdout.write(f"{figures}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
