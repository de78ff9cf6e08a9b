"""The work of the GPU benchmark: windows of real clips or captions of them, and how long each answer is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from benchmarks.gpu.large_models import QWEN2_5_14B, QWEN2_5_VL_7B, QWEN3_VL_8B, LargeModel, write_large_model
from benchmarks.moving_clips import Case, make_case
from conf.engine import EngineSettings, RenderSettings
from conf.prompts import prompt_file
from conf.variants import DEMO, QWEN3, QWEN25, ModelVariant
from udfs.captioning import CaptionPlan, ClipWork, WindowWork, caption_clips
from udfs.cutting import ClipRef, WindowRule, cut_clip
from udfs.engine.requests import Generation, Reply, Request
from udfs.enhancing import EnhancePlan, enhance_captions
from udfs.ordered import done
from udfs.video import Limits

PROMPT = (
    "Describe what happens in this video from beginning to end: the place, everything that moves in it, how "
    "it moves, and what changes. Write whole sentences and leave out what cannot be seen."
)
CHECKPOINTS = Path(__file__).parents[2] / "demo" / "checkpoints"
RULE = WindowRule(2.0, 256, 128)
PEER = ("peer_chunks_16", "peer_chunks_8", "llm_all_at_once")
SPARK = "spark"
WORDS = (
    "background behind blue bright camera changes circle crossing dark fades fast frame green grows houses "
    "light moves object orange pale plain red road screen shape shrinks sky slowly square street white yellow"
)
"""What captions are made up of; the large models' tokenizer has one token for each."""

CAPTION_WORDS = 92
SPARK_BATCH = 8
"""Captions that Spark hands to the UDF at a time, see `jobs.session.small_batches`."""

Item = TypeVar("Item")
Submit = Callable[[Request], "Future[Reply]"]


@dataclass(frozen=True)
class Workload(ABC, Generic[Item]):
    """What is asked. An item is what a task gets in one piece: a clip with its windows, or a caption.

    Attributes:
        model: its dimensions; None: the demo's checkpoint, to try the benchmark without a card.
        tokens: least and greatest number of tokens of an answer.
        modes: the modes that can do it.
        named_modes: more of them, which run only when they are named.
        windows: of each of our modes, unless the command line says otherwise.
        peer_windows: the same for the peer's modes; None: as many as of ours.
        warm_up: items of each client before anything is measured.
        status: column that says how an answer came about.
    """

    model: LargeModel | None
    tokens: tuple[int, int]

    modes: ClassVar[tuple[str, ...]]
    named_modes: ClassVar[tuple[str, ...]] = ()
    windows: ClassVar[int]
    peer_windows: ClassVar[int | None]
    warm_up: ClassVar[int]
    status: ClassVar[str]

    @abstractmethod
    def settings(self, folder: Path, **changes: Any) -> EngineSettings:
        """Settings of Captionlake's engine; the checkpoint is below `folder`."""

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Makes in `folder` what items are read from."""

    @abstractmethod
    def items(self, folder: Path, run: int = 0) -> Iterator[Item]:
        """Yields items without end; window ids are numbers from 0 on.

        Args:
            folder: where clips are.
            run: number of a run of one engine; a later one must not find an earlier one's work in its caches.
        """

    @abstractmethod
    def window_ids(self, item: Item) -> list[str]:
        """The windows of an item."""

    @abstractmethod
    def answers(self, items: Iterable[Item], submit: Submit, *, max_pending: int) -> Iterator[dict[str, Any]]:
        """Yields a result for each window as the UDF does."""

    @abstractmethod
    def requests(self, folder: Path, num_windows: int) -> list[Any]:
        """Returns the requests of the first windows."""

    def lengths(self, num_windows: int) -> list[int]:
        """Tokens of each answer, the same in every run."""
        least, most = self.tokens
        return [int(n) for n in np.random.default_rng(0).integers(least, most + 1, num_windows)]

    def _settings(self, demo_model_id: str, folder: Path, changes: dict[str, Any]) -> EngineSettings:
        given = {"load_format": "dummy"} if self.model else {}
        path = write_large_model(self.model, folder) if self.model else CHECKPOINTS / demo_model_id
        changes["vllm_arguments"] = given | changes.get("vllm_arguments", {})
        return EngineSettings(model_path=str(path), **changes)

    def _asked(self, items: Iterable[Item]) -> list[Request]:
        """What the UDF asks of the engine for these items."""
        seen: list[Request] = []

        def keep(request: Request) -> "Future[Reply]":
            seen.append(request)
            return done(Reply(text=""))

        for _ in self.answers(items, keep, max_pending=64):
            pass
        return seen

    def _with_lengths(self, requests: Iterable[Request]) -> list[Request]:
        numbered = list(requests)
        return [
            replace(request, request_key=str(at), generation=Generation(max_output_tokens=length))
            for at, (request, length) in enumerate(zip(numbered, self.lengths(len(numbered)), strict=True))
        ]


@dataclass(frozen=True)
class CaptionWorkload(Workload[ClipWork]):
    """Windows of a clip are captioned.

    Attributes:
        variant: the model family, for the size of frames.
        clip: the clip; all windows come from it.
    """

    variant: ModelVariant
    clip: Case

    modes = (*PEER, "gpu_alone", "engine")
    named_modes = (SPARK,)
    windows = 200
    peer_windows = 48
    warm_up = 2
    status = "caption_status"

    def settings(self, folder: Path, **changes: Any) -> EngineSettings:
        """Settings with the caches of videos off."""
        own = {
            "kind": "caption",
            "disable_mmcache": True,
            "render": RenderSettings.of_variant(self.variant),
        }
        return self._settings(DEMO.caption_model_id, folder, own | changes)

    def prepare(self, folder: Path) -> None:
        """Makes the clip."""
        make_case(self.clip, folder)

    def items(self, folder: Path, run: int = 0) -> Iterator[ClipWork]:
        """Yields the clip and its windows again and again, the same in every run: caches are off."""
        path = make_case(self.clip, folder)
        rows = cut_clip(ClipRef("clip", 0, None, None, str(path)), RULE, Limits())
        numbers = count()
        for number in count():
            windows = [
                WindowWork(str(next(numbers)), row["frame_indices"], None, row["frame_times_s"])
                for row in rows
            ]
            yield ClipWork(str(number), None, str(path), windows)

    def window_ids(self, item: ClipWork) -> list[str]:
        """The windows of a clip."""
        return [window.window_id for window in item.windows]

    def answers(
        self, items: Iterable[ClipWork], submit: Submit, *, max_pending: int
    ) -> Iterator[dict[str, Any]]:
        """Yields captions."""
        plan = self.plan(max_pending=max_pending)
        # One clip is a batch, as a row is to Spark where there are few.
        for answers in caption_clips(([clip] for clip in items), submit, plan):
            yield from (answer for clip in answers for answer in clip)

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

    def requests(self, folder: Path, num_windows: int) -> list[Any]:
        """Returns requests with decoded frames; those of equal windows share their memory."""
        seen = self._asked([next(self.items(folder))])
        return self._with_lengths(islice(cycle(seen), num_windows))


@dataclass(frozen=True)
class TextWorkload(Workload[tuple[str, str | None]]):
    """Captions are enhanced, with prefix caching as it is by default, in the peer's mode as well."""

    modes = ("llm_all_at_once", "engine")
    windows = 1024
    peer_windows = None
    warm_up = 8
    status = "enhanced_status"

    def settings(self, folder: Path, **changes: Any) -> EngineSettings:
        """Settings of the text model."""
        return self._settings(DEMO.text_model_id, folder, {"kind": "text"} | changes)

    def prepare(self, folder: Path) -> None:
        """Does nothing: captions are made up."""

    def items(self, folder: Path, run: int = 0) -> Iterator[tuple[str, str | None]]:
        """Yields captions of equal length, no two of which begin alike, with their window ids."""
        for number in count():
            words = np.random.default_rng((run, number)).choice(WORDS.split(), CAPTION_WORDS)
            yield str(number), " ".join(words)

    def window_ids(self, item: tuple[str, str | None]) -> list[str]:
        """The window of the caption."""
        return [item[0]]

    def answers(
        self, items: Iterable[tuple[str, str | None]], submit: Submit, *, max_pending: int
    ) -> Iterator[dict[str, Any]]:
        """Yields enhanced captions."""
        plan = EnhancePlan(
            prompt=prompt_file("enhance_default"),
            generation=Generation(),
            max_pending=max_pending,
            verbose=False,
        )
        left = iter(items)
        batches = iter(lambda: list(islice(left, SPARK_BATCH)), [])
        for answers in enhance_captions(batches, submit, plan):
            yield from answers

    def requests(self, folder: Path, num_windows: int) -> list[Any]:
        """Returns the requests of a first run."""
        return self._with_lengths(self._asked(islice(self.items(folder), num_windows)))


WORKLOADS: dict[str, Workload[Any]] = {
    # Four windows of 18 frames, each of 560x1008 pixels as the model sees it.
    "qwen": CaptionWorkload(QWEN2_5_VL_7B, (100, 300), QWEN25, Case("gpu_720p", 1024)),
    # One window of 6 frames.
    "qwen3": CaptionWorkload(QWEN3_VL_8B, (256, 256), QWEN3, Case("gpu_448p", 90, size=(448, 448))),
    "demo": CaptionWorkload(None, (10, 30), DEMO, Case("gpu_demo", 512, size=(320, 240))),
    # 200 tokens of prompt.
    "qwen_text": TextWorkload(QWEN2_5_14B, (300, 300)),
    "demo_text": TextWorkload(None, (16, 16)),
}
"""By name."""
