"""One lake, filled once by the whole pipeline with real engines; tests that write work on a copy."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from conf.loading import load_settings
from conf.settings import Settings
from demo.make_clips import write_scene
from jobs import run
from jobs.report import Report
from tests import media_maker
from tests.engine_fixtures import MAX_MODEL_LEN, DemoModels
from udfs.engine.client import EngineClient

TOO_LONG = "too_long.mp4"
"""Its one window has 80 sampled frames, more tokens than the shared engine takes."""


@dataclass(frozen=True)
class FilledLake:
    """A lake after its first run.

    Attributes:
        folder: the lake.
        clips: the folder that was ingested.
        records: what reached the engine; see `udfs.engine.recording`.
        report: of the run.
    """

    folder: Path
    clips: Path
    records: Path
    report: Report


MakeFlags = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def engine_flags(demo_models: DemoModels) -> dict[str, Any]:
    """Flags under which the jobs share the engines that the suite has loaded."""
    return {
        "--model-variant": "demo",
        "--model-dir": str(demo_models.model_dir),
        "--dtype": "float32",
        "--max-model-len": MAX_MODEL_LEN,
        "--temperature": 0.0,
        "--captioning-use-vllm-mmcache": True,
        "--captioning-max-output-tokens": 12,
        "--enhance-captions-max-output-tokens": 12,
        "--captioning-prompt-text": "What moves?",
        "--preview-num-cpus-per-worker": 1,
    }


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good clips of several lengths and every kind of bad one."""
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(6):
        write_scene(
            folder / f"scene_{seed}.mp4", seed=seed, frame_rate=30, seconds=1.5 + 0.7 * seed, size=(160, 120)
        )
    media_maker.make_clip(folder / "two_windows.mp4", num_frames=400, size=(96, 64))
    media_maker.make_clip(folder / "rotated.mov", num_frames=40, size=(96, 64), rotation_deg=90)
    media_maker.make_clip(folder / TOO_LONG, num_frames=200, frame_rate=5, size=(320, 240))
    media_maker.make_clip(folder / "three_frames.mp4", num_frames=3)
    whole = media_maker.make_clip(tmp_path_factory.mktemp("whole") / "whole.mkv", num_frames=90)
    media_maker.truncate(whole, folder / "cut_off.mkv", keep=0.6)
    media_maker.make_playlist(folder / "playlist.mp4", folder / "scene_0.mp4")
    media_maker.make_audio_only(folder / "audio_only.m4a")
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "gone.mp4").symlink_to(folder / "nowhere")
    return folder


def lake_settings(flags: dict[str, Any], lake: Path, **more: Any) -> Settings:
    """Settings of a job over a lake."""
    extra = {"--" + name.replace("_", "-"): value for name, value in more.items()}
    return load_settings(flags={**flags, "--output-path": str(lake), **extra})


@pytest.fixture(scope="session")
def filled_lake(
    spark: SparkSession,
    engine_flags: dict[str, Any],
    clip_folder: Path,
    vision_engine: EngineClient,
    text_engine: EngineClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> FilledLake:
    """A lake after the whole pipeline has run once."""
    folder = tmp_path_factory.mktemp("filled")
    settings = lake_settings(
        engine_flags,
        folder / "lake",
        input_path=[str(clip_folder)],
        generate_captions=True,
        enhance_captions=True,
        generate_previews=True,
        record_dir=str(folder / "records"),
        windows_per_commit=9,
    )
    report = run.run(spark, settings)
    return FilledLake(folder / "lake", clip_folder, folder / "records", report)


@pytest.fixture
def own_lake(filled_lake: FilledLake, tmp_path: Path) -> FilledLake:
    """A copy of the filled lake and its clips for one test."""
    shutil.copytree(filled_lake.folder, tmp_path / "lake")
    return FilledLake(tmp_path / "lake", filled_lake.clips, filled_lake.records, filled_lake.report)
