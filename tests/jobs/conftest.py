"""Lakes for the tests of the jobs: an empty one for each test, and one that the pipeline has filled."""

import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from conf.loading import load_settings
from conf.settings import Settings
from jobs import ingest, run
from jobs.lake import Lake
from jobs.report import Report
from jobs.stage import JobContext, StageKind, run_stage
from tests import media_maker

WINDOW_FRAMES = 20

CLIP_FLAGS = {
    "--captioning-window-size": WINDOW_FRAMES,
    "--captioning-remainder-threshold": 8,
    "--preview-target-fps": 10,
    "--preview-target-height": 32,
    "--preview-num-cpus-per-worker": 1,
    "--generate-previews": True,
}


@pytest.fixture
def lake(spark: SparkSession, blank_lake: Path, tmp_path: Path) -> Lake:
    """An empty lake of the test's own, where `make_settings` expects it."""
    return Lake(spark, str(shutil.copytree(blank_lake, tmp_path / "lake")))


@pytest.fixture
def make_context(lake: Lake, make_settings: Callable[..., Settings]) -> Callable[..., JobContext]:
    """A run over the test's lake: `make_context(run_id, **flags)`."""

    def make(run_id: str = "run", **flags: object) -> JobContext:
        return JobContext(lake, make_settings(**flags), run_id)

    return make


@dataclass(frozen=True)
class FilledLake:
    """A lake after `captionlake run` with previews and without models.

    Attributes:
        lake: the tables.
        clips: the folder that was ingested.
        settings: of the run.
        report: of the run.
    """

    lake: Lake
    clips: Path
    settings: Settings
    report: Report

    def copy(self, folder: Path, **flags: object) -> "FilledLake":
        """A copy that a test may change, clips included; `flags` as in `make_settings`."""
        clips = folder / "clips"
        if not clips.exists():
            shutil.copytree(self.clips, clips, symlinks=True)
        shutil.copytree(self.lake.location, folder / "lake", dirs_exist_ok=True)
        return self._at(folder, **flags)

    def _at(self, folder: Path, **flags: object) -> "FilledLake":
        given = {"--" + name.replace("_", "-"): value for name, value in flags.items()}
        settings = load_settings(flags={**CLIP_FLAGS, "--output-path": str(folder / "lake"), **given})
        return FilledLake(
            Lake(self.lake.spark, str(folder / "lake")), folder / "clips", settings, self.report
        )


def ingest_clips(lake: Lake, settings: Settings) -> Counter[str]:
    """What the job `ingest` does with clips, without its checks and its row in `runs`."""
    context = JobContext(lake, settings, str(uuid.uuid4()))
    ingest.add_clips(context, ingest.listed(settings))
    return context.counts


def run_alone(lake: Lake, settings: Settings, *kinds: StageKind) -> Counter[str]:
    """What a job does with its stages, without its checks and its row in `runs`."""
    context = JobContext(lake, settings, str(uuid.uuid4()))
    for kind in kinds:
        run_stage(context, kind.make(context))
    return context.counts


def make_clip_folder(folder: Path) -> None:
    """Writes good clips and bad ones; their names say what is to be expected."""
    folder.mkdir(parents=True)
    media_maker.make_clip(folder / "one window.mp4", num_frames=24)
    media_maker.make_clip(folder / "three windows ü.mkv", num_frames=60, seed=1, codec="mpeg4")
    media_maker.make_clip(folder / "upright #1.mov", num_frames=12, rotation_deg=90, seed=2)
    media_maker.make_clip(folder / "too short.mp4", num_frames=3)
    media_maker.make_audio_only(folder / "sound only.m4a")
    media_maker.make_playlist(folder / "playlist.mp4", folder / "one window.mp4")
    whole = media_maker.make_clip(folder / "whole.ts", num_frames=60, seed=3)
    media_maker.truncate(whole, folder / "broken 100%.ts", keep=0.6)
    whole.unlink()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("This is no video.\n")
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")


@pytest.fixture(scope="session")
def filled(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> FilledLake:
    """The one filled lake of the suite; tests that write work on a `copy`."""
    folder = tmp_path_factory.mktemp("filled lake ü")
    clips = folder / "clips"
    make_clip_folder(clips)
    flags = {**CLIP_FLAGS, "--input-path": (str(clips),), "--output-path": str(folder / "lake")}
    settings = load_settings(flags=flags)
    report = run.run(spark, settings)
    return FilledLake(Lake(spark, str(folder / "lake")), clips, settings, report)
