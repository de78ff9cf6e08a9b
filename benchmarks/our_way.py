"""Our way to windows, frames and previews: the functions that Spark's workers call, without Spark."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av

from conf.settings import Settings
from conf.variants import QWEN25
from udfs.captioning import CaptionPlan, ClipWork, WindowWork, caption_clips
from udfs.cutting import ClipRef, WindowRule, cut_clip
from udfs.engine.requests import CaptionRequest, Generation, Reply
from udfs.preparing import PreparedWork, caption_and_preview_clips
from udfs.preview import PreviewParams
from udfs.previewing import PreviewWork, preview_clip
from udfs.video import Limits

RULE = WindowRule(sampling_fps=2.0, window_size=256, remainder_threshold=128)
PARAMS = PreviewParams(**Settings().preview.model_dump())
PLAN = CaptionPlan(
    variant=QWEN25,
    prompt="",
    stage2_prompt=None,
    generation=Generation(),
    limits=Limits(),
    full_size=False,
    max_pending=256,
    verbose=False,
)

Rows = list[dict[str, Any]]


@dataclass
class OurResult:
    """What came out.

    Attributes:
        shapes: for each window the shape of the frames that the model would get.
        previews: the WebP of each window.
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)


def cut(path: Path, *, check_frames: bool) -> Rows:
    """The windows of a clip, as the job `windows` cuts them."""
    clip = ClipRef("clip", 0, None, None, str(path))
    rows = cut_clip(clip, RULE, Limits(), check_frames=check_frames)
    assert all(row["window_status"] == "success" for row in rows), rows
    return rows


def prepare(path: Path, rows: Rows) -> OurResult:
    """Frames and previews in one pass, as `run` makes them."""
    result = OurResult()
    work = PreparedWork(_captions(path, rows), _previews(rows))
    (answers,) = caption_and_preview_clips([[work]], _taker(result), PLAN, PARAMS)
    result.previews = [answer["preview"]["webp"] for answer in answers[0]]
    assert len(result.shapes) == len(rows)
    return result


def frames_only(path: Path, rows: Rows) -> OurResult:
    """Frames without previews, as the job `caption` makes them."""
    result = OurResult()
    list(caption_clips([[_captions(path, rows)]], _taker(result), PLAN))
    assert len(result.shapes) == len(rows)
    return result


def previews_only(path: Path, rows: Rows) -> OurResult:
    """Previews without frames, as the job `preview` makes them."""
    made = preview_clip("clip", None, str(path), _previews(rows), params=PARAMS, limits=Limits())
    return OurResult(previews=[one["webp"] for one in made])


def decode_everything(path: Path) -> int:
    """The floor: every frame decoded in order with one thread, and nothing done with it."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.best("video")
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def _captions(path: Path, rows: Rows) -> ClipWork:
    windows = [
        WindowWork(row["window_id"], row["frame_indices"], row["window_error"], row["frame_times_s"])
        for row in rows
    ]
    return ClipWork("clip", None, str(path), windows)


def _previews(rows: Rows) -> list[PreviewWork]:
    names = PreviewWork.__dataclass_fields__
    fields: list[dict[str, Any]] = [{name: row.get(name) for name in names} for row in rows]
    return [PreviewWork(**one) for one in fields]


def _taker(result: OurResult) -> Any:
    def submit(request: CaptionRequest) -> "Future[Reply]":
        result.shapes.append(request.frames.shape)
        future: Future[Reply] = Future()
        future.set_result(Reply(text="", finish_reason="stop"))
        return future

    return submit
