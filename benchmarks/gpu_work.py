"""The work of the GPU benchmark: windows of real clips, their frames, and how long each answer is."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.large_models import QWEN2_5_VL_7B, QWEN3_VL_8B, LargeModel, write_large_model
from benchmarks.moving_clips import Case, make_case
from conf.engine import EngineSettings, RenderSettings
from conf.variants import DEMO, QWEN3, QWEN25, ModelVariant
from udfs.captioning import CaptionPlan, ClipWork, WindowWork, caption_clips
from udfs.cutting import ClipRef, WindowRule, cut_clip
from udfs.engine.requests import CaptionRequest, Generation, Reply
from udfs.ordered import done
from udfs.video import Limits

PROMPT = (
    "Describe what happens in this video from beginning to end: the place, everything that moves in it, how "
    "it moves, and what changes. Write whole sentences and leave out what cannot be seen."
)
CHECKPOINTS = Path(__file__).parents[1] / "demo" / "checkpoints"
RULE = WindowRule(2.0, 256, 128)


@dataclass(frozen=True)
class Workload:
    """What is captioned.

    Attributes:
        variant: the model family, for the size of frames.
        model: its dimensions; None: the demo's checkpoint, to try the benchmark without a card.
        clip: the clip; all windows come from it.
        tokens: least and greatest number of tokens of an answer.
    """

    variant: ModelVariant
    model: LargeModel | None
    clip: Case
    tokens: tuple[int, int]

    def settings(self, folder: Path, **changes: Any) -> EngineSettings:
        """Settings of Captionlake's engine; the checkpoint is below `folder`."""
        given = {"load_format": "dummy"} if self.model else {}
        path = write_large_model(self.model, folder) if self.model else CHECKPOINTS / DEMO.caption_model_id
        changes["vllm_arguments"] = given | changes.get("vllm_arguments", {})
        return EngineSettings(
            model_path=str(path),
            kind="caption",
            disable_mmcache=True,
            render=RenderSettings.of_variant(self.variant),
            **changes,
        )

    def lengths(self, num_windows: int) -> list[int]:
        """Tokens of each answer, the same in every run."""
        least, most = self.tokens
        return [int(n) for n in np.random.default_rng(0).integers(least, most + 1, num_windows)]

    def clips(self, folder: Path) -> Iterator[ClipWork]:
        """Yields the clip and its windows again and again; window ids are numbers from 0 on."""
        path = make_case(self.clip, folder)
        rows = cut_clip(ClipRef("clip", 0, None, None, str(path)), RULE, Limits())
        numbers = count()
        for number in count():
            windows = [
                WindowWork(str(next(numbers)), row["frame_indices"], None, row["frame_times_s"])
                for row in rows
            ]
            yield ClipWork(str(number), None, str(path), windows)

    def plan(self, *, max_pending: int) -> CaptionPlan:
        """How a task captions."""
        return CaptionPlan(
            variant=self.variant,
            prompt=PROMPT,
            stage2_prompt=None,
            generation=Generation(),
            limits=Limits(),
            full_size=False,
            max_pending=max_pending,
            verbose=False,
        )

    def requests(self, folder: Path, num_windows: int) -> list[CaptionRequest]:
        """Returns requests with decoded frames; those of equal windows share their memory."""
        seen: list[CaptionRequest] = []

        def keep(request: CaptionRequest) -> "Future[Reply]":
            seen.append(request)
            return done(Reply(text=""))

        for _ in caption_clips([[next(self.clips(folder))]], keep, self.plan(max_pending=64)):
            pass
        lengths = self.lengths(num_windows)
        return [
            replace(request, request_key=str(at), generation=Generation(max_output_tokens=lengths[at]))
            for at, request in enumerate(islice(cycle(seen), num_windows))
        ]


WORKLOADS = {
    # Four windows of 18 frames, each of 560x1008 pixels as the model sees it.
    "qwen": Workload(QWEN25, QWEN2_5_VL_7B, Case("gpu_720p", 1024), (100, 300)),
    # One window of 6 frames.
    "qwen3": Workload(QWEN3, QWEN3_VL_8B, Case("gpu_448p", 90, size=(448, 448)), (256, 256)),
    "demo": Workload(DEMO, None, Case("gpu_demo", 512, size=(320, 240)), (10, 30)),
}
"""By name."""
