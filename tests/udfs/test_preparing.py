"""Captions and previews in one go: what the model gets and the preview shows is as if each were alone."""

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from conf.variants import DEMO
from tests.jobs.opened import Opens
from tests.media_maker import make_clip, read_index, truncate
from udfs.captioning import CaptionPlan, ClipWork, WindowWork, caption_clips
from udfs.cutting import ClipRef, WindowRule, cut_clip
from udfs.engine.requests import CaptionRequest, Generation, Reply
from udfs.preparing import PreparedWork, caption_and_preview_clips
from udfs.preview import PreviewParams
from udfs.preview_udf import FIELDS
from udfs.previewing import PreviewWork, preview_clip
from udfs.video import Limits

RULE = WindowRule(sampling_fps=5.0, window_size=30, remainder_threshold=10)
PARAMS = PreviewParams(
    target_fps=4.0, target_height=32, compression_level=2, quality=50, num_cpus_per_worker=1.0
)
PLAN = CaptionPlan(
    variant=DEMO,
    prompt="What moves?",
    stage2_prompt=None,
    generation=Generation(temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_output_tokens=4),
    limits=Limits(),
    full_size=False,
    max_pending=8,
    verbose=False,
)
CLIPS = (
    "plain.mp4",
    "b_frames.mkv",
    "vp9.webm",
    "mpeg4.avi",
    "turned.mov",
    "short.mp4",
    "gone.mp4",
    "broken.ts",
)


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedWork]:
    folder = tmp_path_factory.mktemp("prepared")
    make_clip(folder / "plain.mp4", num_frames=75)
    make_clip(folder / "b_frames.mkv", num_frames=50, b_frames=3, seed=1)
    make_clip(folder / "vp9.webm", num_frames=40, codec="vp9", seed=2)
    make_clip(folder / "mpeg4.avi", num_frames=40, codec="mpeg4", seed=3)
    make_clip(folder / "turned.mov", num_frames=40, rotation_deg=90, seed=4)
    make_clip(folder / "short.mp4", num_frames=3)
    make_clip(folder / "gone.mp4", num_frames=30)
    whole = make_clip(folder / "whole.ts", num_frames=60, gop=20)
    truncate(whole, folder / "broken.ts", keep=0.6)
    made = [prepared(folder / name) for name in CLIPS]
    (folder / "gone.mp4").unlink()
    return made


def prepared(path: Path) -> PreparedWork:
    rows = cut_clip(ClipRef(path.name, 0, None, None, str(path)), RULE, Limits())
    captions = [
        WindowWork(*(row.get(n) for n in ("window_id", "frame_indices", "window_error", "frame_times_s")))  # type: ignore[arg-type]
        for row in rows
    ]
    previews = [PreviewWork(**{name: row.get(name) for name in FIELDS}) for row in rows]
    return PreparedWork(ClipWork(path.name, None, str(path), captions), previews)


class Model:
    """Tells which frames it was shown."""

    def __init__(self) -> None:
        self.requests: dict[str, CaptionRequest] = {}

    def submit(self, request: CaptionRequest) -> "Future[Reply]":
        self.requests[request.request_key] = request
        future: Future[Reply] = Future()
        numbers = [read_index(frame) for frame in request.frames]
        future.set_result(Reply(text=str(numbers), finish_reason="stop"))
        return future


def test_both_are_those_that_are_made_alone(works: list[PreparedWork]) -> None:
    alone, together = Model(), Model()
    (captions,) = caption_clips([[work.captions for work in works]], alone.submit, PLAN)
    both = list(caption_and_preview_clips([works[:3], works[3:]], together.submit, PLAN, PARAMS))
    assert [len(batch) for batch in both] == [3, len(works) - 3]
    answers = [answer for batch in both for answer in batch]
    for work, caption, answer in zip(works, captions, answers, strict=True):
        clip = work.captions
        previews = preview_clip(
            clip.clip_id, None, clip.clip_uri, work.previews, params=PARAMS, limits=Limits()
        )
        assert [one["caption"] for one in answer] == caption
        assert [one["preview"] for one in answer] == previews
        assert [one["window_id"] for one in answer] == [window.window_id for window in clip.windows]
        assert {one["clip_id"] for one in answer} == {clip.clip_id}
        for window, one in zip(clip.windows, caption, strict=True):
            if one["caption_status"] == "success":
                assert one["caption"] == str(window.frame_indices)
    assert set(alone.requests) == set(together.requests)
    for key, request in alone.requests.items():
        assert np.array_equal(request.frames, together.requests[key].frames)
        assert np.array_equal(request.times_s, together.requests[key].times_s)


def test_each_clip_has_its_outcome_and_the_bad_ones_say_why(works: list[PreparedWork]) -> None:
    (answers,) = caption_and_preview_clips([works], Model().submit, PLAN, PARAMS)
    statuses = {
        work.captions.clip_id: {
            (one["caption"]["caption_status"], one["preview"]["preview_status"]) for one in answer
        }
        for work, answer in zip(works, answers, strict=True)
    }
    good = {("success", "success")}
    assert statuses == dict.fromkeys(CLIPS, good) | {
        "short.mp4": {("skipped", "skipped")},
        "gone.mp4": {("error", "error")},
    }


@pytest.mark.parametrize("name", ["plain.mp4", "b_frames.mkv", "vp9.webm", "mpeg4.avi"])
def test_a_clip_is_opened_once_for_both(works: list[PreparedWork], name: str) -> None:
    work = next(work for work in works if work.captions.clip_id == name)
    assert work.captions.clip_uri is not None
    with Opens(Path(work.captions.clip_uri).parent) as opens:
        list(caption_and_preview_clips([[work]], Model().submit, PLAN, PARAMS))
    # AVI has no true times, so that they are decoded before the frames are picked.
    assert opens.counts == {name: 2 if name.endswith("avi") else 1}
