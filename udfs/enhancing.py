"""From captions to enhanced captions, without Spark."""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from schemas.status import CaptionStatus
from udfs.captioning import engine_field, reply_status, then
from udfs.engine.requests import Generation, Reply, TextRequest
from udfs.ordered import done, in_order

log = logging.getLogger(__name__)

Result = dict[str, Any]


@dataclass(frozen=True)
class EnhancePlan:
    """What an enhancement task needs to know, as plain values.

    Attributes:
        prompt: the instruction, given as the system prompt.
        generation: how the model answers.
        max_pending: captions in flight or waiting for an earlier one.
        verbose: log what all captions have in common, and a line for each.
    """

    prompt: str
    generation: Generation
    max_pending: int
    verbose: bool


def enhance_captions(
    batches: Iterable[list[tuple[str, str | None]]],
    submit: Callable[[TextRequest], "Future[Reply]"],
    plan: EnhancePlan,
) -> Iterator[list[Result]]:
    """Enhances captions.

    Args:
        batches: `(window_id, caption)` in batches; a caption that is None is skipped.
        submit: hands a request to the engine; blocks while too many are in flight.
        plan: how.

    Yields:
        For each batch one result for each caption, in the order in which they came.
    """

    def start(item: tuple[str, str | None]) -> "list[Future[Result]]":
        window_id, caption = item
        if caption is None or not caption.strip():
            return [done(_skipped(window_id, caption))]
        request = TextRequest(
            request_key=window_id, prompt=caption, system=plan.prompt, generation=plan.generation
        )
        return [then(submit(request), lambda reply: _answered(window_id, reply, plan))]

    if plan.verbose:
        log.info("prompt=%r %s", plan.prompt, plan.generation)
    for batch in in_order(batches, start, max_pending=plan.max_pending):
        yield [result for (result,) in batch]


def _answered(window_id: str, reply: Reply, plan: EnhancePlan) -> Result:
    status = reply_status(reply)
    if plan.verbose:
        log.info("window_id=%s enhanced=%s output_tokens=%s", window_id, status, reply.output_tokens)
    return {
        "window_id": window_id,
        "enhanced_caption": None if reply.error is not None else reply.text,
        "enhanced_status": str(status),
        "enhanced_error": reply.error,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "output_tokens": reply.output_tokens,
        "latency_s": reply.latency_s,
        "engine": engine_field(reply),
    }


def _skipped(window_id: str, caption: str | None) -> Result:
    reason = "there is no caption to enhance" if caption is None else "the caption is empty"
    return {
        "window_id": window_id,
        "enhanced_status": str(CaptionStatus.SKIPPED),
        "enhanced_error": reason,
    }
