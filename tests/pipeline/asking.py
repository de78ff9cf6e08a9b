"""Captions and enhancements as a task of the jobs makes them, without Spark, and what reached the engine."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from conf.settings import Settings
from demo.make_clips import write_scene
from jobs.caption import caption_plan
from jobs.enhance import enhance_plan
from jobs.models import caption_engine, text_engine
from jobs.windows import media_limits, window_rule
from udfs.captioning import ClipWork, WindowWork, caption_clips
from udfs.cutting import ClipRef, cut_clip
from udfs.engine.client import EngineClient
from udfs.engine.slot import Slot
from udfs.enhancing import enhance_captions

SIZE = (200, 120)
FRAME_RATE = Fraction(25)


def film(folder: Path, number: int = 0, *, seconds: float = 4.0) -> Path:
    """A clip of plain frame times: frame i at i / 25 s."""
    return write_scene(
        folder / f"filmed_{number}.mp4", seed=number, seconds=seconds, frame_rate=FRAME_RATE, size=SIZE
    )


def clip_work(path: Path, settings: Settings) -> ClipWork:
    """A clip cut into windows by the settings' rule."""
    rows = cut_clip(
        ClipRef(path.stem, 0, None, None, str(path)), window_rule(settings), media_limits(settings)
    )
    windows = [WindowWork(row["window_id"], row["frame_indices"], row["window_error"]) for row in rows]
    return ClipWork(path.stem, None, str(path), windows)


def ask_captions(settings: Settings, works: list[ClipWork], slot: Slot) -> list[dict[str, Any]]:
    """The answers about all windows, in order."""
    least = settings.caption_generation.caption_batch_size
    with EngineClient(caption_engine(settings), slot) as client:
        (clips,) = caption_clips([works], lambda r: client.submit(r, least), caption_plan(settings))
    return [answer for answers in clips for answer in answers]


def ask_enhancements(settings: Settings, captions: list[str], slot: Slot) -> list[dict[str, Any]]:
    """The answers about captions whose windows are called `e0`, `e1` and so on."""
    pairs = [(f"e{k}", caption) for k, caption in enumerate(captions)]
    with EngineClient(text_engine(settings), slot) as client:
        (answers,) = enhance_captions([pairs], client.submit, enhance_plan(settings))
    return answers


def record_of(settings: Settings, table: str, key: str, stage: int = 1) -> tuple[dict[str, Any], Any]:
    """What reached vLLM in one pass: the JSON file and the arrays."""
    (folder,) = (Path(str(settings.engine.record_dir)) / table).glob(f"{key}#*")
    content = json.loads((folder / f"stage{stage}.json").read_text(encoding="utf-8"))
    return content, np.load(folder / f"stage{stage}.npz")
