"""Captions and previews of a clip from one pass of decoding, without Spark."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from udfs.captioning import CaptionPlan, CaptionTaker, ClipWork, Submit, tell_setup, then
from udfs.one_pass import Taker, serve
from udfs.ordered import in_order
from udfs.preview import PreviewParams
from udfs.previewing import PreviewTaker, PreviewWork

Result = dict[str, Any]


@dataclass(frozen=True)
class PreparedWork:
    """One clip whose windows, the same ones in the same order, are to be captioned and shown."""

    captions: ClipWork
    previews: list[PreviewWork]


def caption_and_preview_clips(
    batches: Iterable[list[PreparedWork]], submit: Submit, plan: CaptionPlan, params: PreviewParams
) -> Iterator[list[list[Result]]]:
    """Captions the windows of clips and makes their previews.

    Args:
        batches: clips in batches.
        submit: hands a request to the engine; blocks while too many are in flight.
        plan: how to caption.
        params: how previews look.

    Yields:
        For each batch, for each clip, one result for each window, in the order in which they came: its ids,
        the `caption` of `caption_clips` and the `preview` of `preview_clip`.
    """
    tell_setup(plan)
    return in_order(
        batches, lambda work: _start_clip(work, submit, plan, params), max_pending=plan.max_pending
    )


def _start_clip(
    work: PreparedWork, submit: Submit, plan: CaptionPlan, params: PreviewParams
) -> "list[Future[Result]]":
    clip = work.captions
    captions = CaptionTaker(clip, submit, plan)
    previews = PreviewTaker(clip.clip_id, work.previews, params)
    takers: list[Taker] = [taker for taker in (captions, previews) if taker.is_wanted]
    if takers:
        serve(clip.clip_bytes, clip.clip_uri, takers, plan.limits)
    pairs = zip(captions.futures(), previews.results(), strict=True)
    return [then(caption, partial(_both, preview)) for caption, preview in pairs]


def _both(preview: Result, caption: Result) -> Result:
    # The ids of both are checked where they are joined to their windows.
    ids = {
        name: caption[name] if caption[name] == preview[name] else None for name in ("clip_id", "window_id")
    }
    return ids | {"caption": caption, "preview": preview}
