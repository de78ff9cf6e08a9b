"""The benchmark of the job in Spark, with so few clips that its figures mean nothing."""

import json
from pathlib import Path

import pytest

from benchmarks.cpu_path import RESULTS, save
from benchmarks.spark_path import KINDS, main


@pytest.mark.clusters
def test_a_kind_of_clips_is_measured_both_ways_and_other_figures_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    row = {"case": "x264_10s", "peer": "x264", "cpu_ratio": 3.0}
    other, older = {"case": "x264_10s", "share": 0.5}, {"case": "h264_480p", "share": 0.5}
    save([row], spark=[older, other], path=path, machine={"cpu": "another"})
    assert main(["--clips", "h264_480p", "--copies", "2", "--results", str(path)]) == 0
    held = json.loads(path.read_text())
    assert (held["machine"], held["rows"]) == ({"cpu": "another"}, [row])
    kept, new = held["spark"]
    assert kept == other
    assert (new["case"], new["clips"]) == ("h264_480p", 2)
    assert min(new["spark_clips_per_s"], new["bare_clips_per_s"]) > 0
    assert new["share"] == pytest.approx(new["spark_clips_per_s"] / new["bare_clips_per_s"], rel=0.1)
    assert new["workers_peak_mib_last_third"] > 0


def test_the_committed_figures_are_of_both_kinds_of_clips() -> None:
    figures = json.loads(RESULTS.read_text())["spark"]
    assert [one["case"] for one in figures] == [case.name for case in KINDS]
    assert {one["clips"] for one in figures} == {200}
