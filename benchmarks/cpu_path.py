"""The CPU path: windows, frames and previews, the peer's way beside ours.

`python -m benchmarks.cpu_path` from the root of a checkout makes its clips, runs both ways alternating, each
in a process of its own, and writes `benchmarks/results/cpu_path.json`. CPU seconds are the main figure: they
count user and system time with all children and depend little on what else the machine does.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.likeness import preview_likeness
from benchmarks.measuring import ROOT, Cost, measure
from benchmarks.moving_clips import MAIN, OTHERS, Case, make_case

RESULTS = ROOT / "benchmarks" / "results" / "cpu_path.json"
REPEATS = {300: 5, 900: 3, 1800: 2}
"""Runs of each way, by the number of frames."""

Costs = dict[str, list[Cost]]
Rows = Sequence[dict[str, Any]]


def measure_case(
    case: Case, folder: Path, *, repeats: int, peer_repeats: int, encoders: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Measures one clip; returns one row for each encoder of the peer."""
    path = make_case(case, folder)
    rows_file, ours_folder = folder / f"{case.name}.json", folder / f"{case.name}_ours"
    costs: Costs = {}

    def add(name: str, *arguments: object) -> None:
        cost = measure(f"benchmarks.works:{name.partition(' ')[0]}", str(path), *map(str, arguments))
        costs.setdefault(name, []).append(cost)
        sys.stderr.write(f"{case.name} {name}: {cost.cpu_s:.2f} s of CPU, {cost.wall_s:.2f} s\n")

    for run in range(repeats):
        for encoder in encoders:
            if run < peer_repeats:
                add(f"peer {encoder}", encoder, folder / f"{case.name}_{encoder}")
            add("windows_checked", rows_file)
            add("windows_by_packets", rows_file)
            add("frames_and_previews", rows_file, ours_folder)
        add("frames", rows_file)
        add("floor")
    rows = json.loads(rows_file.read_text())
    folders = {name: folder / f"{case.name}_{name}" for name in ("ours", *encoders)}
    likeness = preview_likeness(path, rows, folders)
    return [_row(case, len(rows), encoder, costs, likeness) for encoder in encoders]


def _row(case: Case, windows: int, encoder: str, costs: Costs, likeness: dict[str, float]) -> dict[str, Any]:
    peer = costs[f"peer {encoder}"]
    prepare, checked, packets = (
        costs[name] for name in ("frames_and_previews", "windows_checked", "windows_by_packets")
    )
    cpu = {name: statistics.median(cost.cpu_s for cost in many) for name, many in costs.items()}
    wall = {name: statistics.median(cost.wall_s for cost in many) for name, many in costs.items()}
    ours, slow = [
        cpu[name] + cpu["frames_and_previews"] for name in ("windows_by_packets", "windows_checked")
    ]
    ours_wall = wall["windows_by_packets"] + wall["frames_and_previews"]
    return {
        "case": case.name,
        "peer": encoder,
        "windows": windows,
        "runs": len(prepare),
        "peer_runs": len(peer),
        "cpu_ratio": round(cpu[f"peer {encoder}"] / ours, 2),
        "cpu_ratio_checked": round(cpu[f"peer {encoder}"] / slow, 2),
        "cpu_ratio_frames_and_previews": round(cpu[f"peer {encoder}"] / cpu["frames_and_previews"], 2),
        "wall_ratio": round(wall[f"peer {encoder}"] / ours_wall, 2),
        "peer_cpu_s": round(cpu[f"peer {encoder}"], 3),
        "ours_cpu_s": round(ours, 3),
        "windows_checked_cpu_s": round(cpu["windows_checked"], 3),
        "windows_by_packets_cpu_s": round(cpu["windows_by_packets"], 3),
        "frames_and_previews_cpu_s": round(cpu["frames_and_previews"], 3),
        "frames_cpu_s": round(cpu["frames"], 3),
        "floor_cpu_s": round(cpu["floor"], 3),
        "fps_per_core": round(case.num_frames / ours, 1),
        "ours_peak_mib": round(max(cost.peak_mib for cost in (*prepare, *checked, *packets))),
        "peer_peak_mib": round(max(cost.peak_mib for cost in peer)),
        "ours_ssim": likeness["ours"],
        "peer_ssim": likeness[encoder],
        "peer_commands": _shown(peer),
    }


def _shown(peer: list[Cost]) -> list[str]:
    """The commands for the last window, with the names of files alone."""
    return [
        " ".join(Path(word).name if word.startswith("/") else word for word in command.split())
        for command in peer[-1].output[-2:]
    ]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else ""
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_at_start": [round(load, 1) for load in os.getloadavg()],
    }


def save(rows: Rows = (), *, spark: Rows = (), path: Path = RESULTS, **more: Any) -> None:
    """Puts figures into the results, in place of older ones of the same case and peer.

    Args:
        rows: of this benchmark.
        spark: of `benchmarks.spark_path`.
        path: the file.
        more: what else it holds.
    """
    held = json.loads(path.read_text()) if path.exists() else {}
    held["rows"] = _replaced(held.get("rows", ()), rows)
    held["spark"] = _replaced(held.get("spark", ()), spark)
    held.update(more)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": held.pop("machine", machine()), **held}, indent=1) + "\n")


def _replaced(held: Rows, new: Rows) -> list[dict[str, Any]]:
    order = [case.name for case in (*MAIN, *OTHERS)]
    rows = {(row["case"], row.get("peer", "")): row for row in (*held, *new)}
    return [rows[key] for key in sorted(rows, key=lambda key: (order.index(key[0]), key[1]))]


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    columns = [name for name in rows[0] if name != "peer_commands"]
    table = Table(title="peer / ours in CPU seconds, and what it is made of")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*[str(row[name]) for name in columns])
    console = Console(width=240)
    console.print(table)
    for row in rows:
        console.print(*row["peer_commands"], sep="\n", soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    """Runs the cases named on the command line, else all."""
    names = [case.name for case in (*MAIN, *OTHERS)]
    parser = argparse.ArgumentParser(description="The CPU path: the peer's way beside ours.")
    parser.add_argument("--case", action="append", choices=names, help="repeatable; default: all")
    parser.add_argument("--repeats", type=int, help="runs of each way; default: more for short clips")
    parser.add_argument("--peer-repeats", type=int, help="runs of the peer, which take long; default: all")
    parser.add_argument("--clips", type=Path, help="where the clips are kept; default: a temporary folder")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="cpu_path-") as temporary:
        folder = given.clips or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for case in (*MAIN, *OTHERS):
            if not given.case or case.name in given.case:
                encoders = ("x264", "openh264") if case in MAIN else ("x264",)
                repeats = given.repeats or REPEATS.get(case.num_frames, 1)
                peer_repeats = given.peer_repeats or repeats
                rows = measure_case(
                    case, folder, repeats=repeats, peer_repeats=peer_repeats, encoders=encoders
                )
                save(rows, machine=machine())
                show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
