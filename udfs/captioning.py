"""From clips to captions, without Spark: decode each clip once, ask the engine, keep the order."""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.errors import RowContractError
from conf.variants import ModelVariant
from schemas.status import CaptionStatus
from udfs.engine.requests import CaptionRequest, Generation, Reply
from udfs.one_pass import Order, serve
from udfs.ordered import done, in_order
from udfs.resize import fit_size, resize_frame
from udfs.video import FrameReader, Limits, Resizer, WindowFrames

log = logging.getLogger(__name__)

Frame = npt.NDArray[np.uint8]

Result = dict[str, Any]
"""One element of the UDF's answer: the columns of `captions` that the model fills in."""

Submit = Callable[[CaptionRequest], "Future[Reply]"]


@dataclass(frozen=True)
class CaptionPlan:
    """What a caption task needs to know, as plain values.

    Attributes:
        variant: the model family, for the size of frames.
        prompt: prompt of the first pass.
        stage2_prompt: prompt of the second pass, None for none.
        generation: how the model answers.
        limits: what decoding a clip may cost.
        full_size: hand over frames as they are; the model's processor resizes them.
        max_pending: windows in flight or waiting for an earlier one.
        verbose: log what all windows have in common, and a line for each clip and window.
    """

    variant: ModelVariant
    prompt: str
    stage2_prompt: str | None
    generation: Generation
    limits: Limits
    full_size: bool
    max_pending: int
    verbose: bool


@dataclass(frozen=True)
class WindowWork:
    """One window to be captioned; `frame_indices` None where the clip has no window.

    With `frame_times_s`, the presentation times of the frames, less of the clip is decoded.
    """

    window_id: str
    frame_indices: list[int] | None
    window_error: str | None
    frame_times_s: list[float] | None = None


@dataclass(frozen=True)
class ClipWork:
    """One clip with its windows to be captioned."""

    clip_id: str
    clip_bytes: bytes | None
    clip_uri: str | None
    windows: list[WindowWork]


def caption_clips(
    batches: Iterable[list[ClipWork]], submit: Submit, plan: CaptionPlan
) -> Iterator[list[list[Result]]]:
    """Captions the windows of clips.

    Args:
        batches: clips in batches.
        submit: hands a request to the engine; blocks while too many are in flight.
        plan: how.

    Yields:
        For each batch, for each clip, one result for each window, in the order in which they came.
    """
    tell_setup(plan)
    return in_order(batches, lambda clip: _start_clip(clip, submit, plan), max_pending=plan.max_pending)


def tell_setup(plan: CaptionPlan) -> None:
    """Logs what all windows of a task have in common, if the plan says so."""
    if plan.verbose:
        log.info(
            "variant=%s prompt=%r stage2_prompt=%r full_size=%s %s",
            plan.variant.name,
            plan.prompt,
            plan.stage2_prompt,
            plan.full_size,
            plan.generation,
        )


def _start_clip(clip: ClipWork, submit: Submit, plan: CaptionPlan) -> "list[Future[Result]]":
    """Decodes a clip once and asks for the captions of its windows as their frames are ready."""
    captions = CaptionTaker(clip, submit, plan)
    if captions.is_wanted:
        serve(clip.clip_bytes, clip.clip_uri, [captions], plan.limits)
    return captions.futures()


class CaptionTaker:
    """Takes the frames of a clip's windows and asks the engine for their captions."""

    def __init__(self, clip: ClipWork, submit: Submit, plan: CaptionPlan) -> None:
        self._clip, self._submit, self._plan = clip, submit, plan
        if plan.verbose:
            log.info("clip_id=%s windows=%d", clip.clip_id, len(clip.windows))
        self._futures: dict[int, Future[Result]] = {
            at: done(_skipped(clip, window))
            for at, window in enumerate(clip.windows)
            if window.frame_indices is None
        }

    @property
    def is_wanted(self) -> bool:
        """Whether any window needs frames."""
        return len(self._futures) < len(self._clip.windows)

    def orders(self, reader: FrameReader) -> list[Order]:
        """The sampled frames of each window, at the size at which the model sees them."""
        return [
            Order(window.frame_indices, window.frame_times_s, self._transform(window), partial(self._ask, at))
            for at, window in enumerate(self._clip.windows)
            if window.frame_indices is not None
        ]

    def fail(self, reason: str) -> None:
        """The clip cannot be read."""
        for at, window in enumerate(self._clip.windows):
            if at not in self._futures:
                self._futures[at] = done(_failed(self._clip, window, reason, self._plan))

    def futures(self) -> "list[Future[Result]]":
        """One result for each window, in order; complete after `serve`."""
        windows = self._clip.windows
        if len(self._futures) != len(windows):
            raise RowContractError(
                f"clip_id={self._clip.clip_id}: {len(windows)} windows, {len(self._futures)} answers"
            )
        return [self._futures[at] for at in range(len(windows))]

    def _transform(self, window: WindowWork) -> Resizer | None:
        if self._plan.full_size:
            return None
        return _ModelSize(len(window.frame_indices or []), self._plan.variant)

    def _ask(self, at: int, frames: WindowFrames) -> None:
        window = self._clip.windows[at]
        self._futures[at] = _ask(self._clip, window, frames, self._submit, self._plan)


@dataclass(frozen=True, eq=False)
class _ModelSize:
    """Brings the frames of a window to the size at which the model sees them; see `udfs.video.Resizer`."""

    num_frames: int
    variant: ModelVariant

    def resize(self, picture: Frame, out: Frame | None) -> Frame:
        height, width = fit_size(*picture.shape[:2], num_frames=self.num_frames, variant=self.variant)
        return resize_frame(picture, height, width, out=out)


def _ask(
    clip: ClipWork, window: WindowWork, frames: WindowFrames, submit: Submit, plan: CaptionPlan
) -> "Future[Result]":
    if frames.frames is None:
        return done(_failed(clip, window, frames.error or "its frames cannot be decoded", plan))
    request = CaptionRequest(
        request_key=window.window_id,
        frames=frames.frames,
        times_s=frames.times_s,
        prompt=plan.prompt,
        stage2_prompt=plan.stage2_prompt,
        generation=plan.generation,
    )
    return then(submit(request), lambda reply: _answered(clip, window, reply, plan))


def then(future: "Future[Any]", change: Callable[[Any], Result]) -> "Future[Result]":
    """A future with the changed result of another one."""
    changed: Future[Result] = Future()

    def resolve(source: "Future[Any]") -> None:
        error = source.exception()
        if error is not None:
            changed.set_exception(error)
        else:
            changed.set_result(change(source.result()))

    future.add_done_callback(resolve)
    return changed


def reply_status(reply: Reply) -> CaptionStatus:
    """The status that a reply means."""
    if reply.error is not None:
        return CaptionStatus.ERROR
    return CaptionStatus.TRUNCATED if reply.finish_reason == "length" else CaptionStatus.SUCCESS


def engine_field(reply: Reply) -> Result | None:
    """The field `engine` of an answer; see `EngineReading`."""
    return None if reply.engine is None else asdict(reply.engine)


def _answered(clip: ClipWork, window: WindowWork, reply: Reply, plan: CaptionPlan) -> Result:
    status = reply_status(reply)
    if plan.verbose:
        log.info("window_id=%s status=%s output_tokens=%s", window.window_id, status, reply.output_tokens)
    second = f"second pass failed, first caption kept: {reply.stage2_error}" if reply.stage2_error else None
    return _keys(clip, window) | {
        "caption": None if reply.error is not None else reply.text,
        "stage1_caption": reply.stage1_text,
        "caption_status": str(status),
        "caption_error": reply.error or second,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "output_tokens": reply.output_tokens,
        "latency_s": reply.latency_s,
        "engine": engine_field(reply),
    }


def _failed(clip: ClipWork, window: WindowWork, reason: str, plan: CaptionPlan) -> Result:
    if plan.verbose:
        log.info("window_id=%s status=error %s", window.window_id, reason)
    return _keys(clip, window) | {"caption_status": str(CaptionStatus.ERROR), "caption_error": reason}


def _skipped(clip: ClipWork, window: WindowWork) -> Result:
    reason = f"the clip has no window: {window.window_error}"
    return _keys(clip, window) | {"caption_status": str(CaptionStatus.SKIPPED), "caption_error": reason}


def _keys(clip: ClipWork, window: WindowWork) -> Result:
    return {"clip_id": clip.clip_id, "window_id": window.window_id}
