"""One pass of decoding for all that is made of a clip."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from conf.errors import ClipError
from udfs.storage import open_clip
from udfs.video import Change, FrameReader, Limits, WindowFrames
from udfs.video_reader import Times


@dataclass(frozen=True)
class Order:
    """The frames that one window needs.

    Attributes:
        indices: frame numbers, ascending.
        times_s: their presentation times in seconds; None where nobody told.
        transform: what becomes of each frame; None for nothing.
        take: gets the frames, or why there are none.
    """

    indices: Sequence[int]
    times_s: Times | None
    transform: Change | None
    take: Callable[[WindowFrames], None]


class Taker(Protocol):
    """Something that is made of a clip's windows."""

    def orders(self, reader: FrameReader) -> list[Order]:
        """Says which frames are needed; may ask the reader for times, which raises ClipError."""

    def fail(self, reason: str) -> None:
        """Gives every window that has no outcome yet this one: an error with the reason."""


def serve(clip_bytes: bytes | None, clip_uri: str | None, takers: Sequence[Taker], limits: Limits) -> None:
    """Opens a clip, decodes it once, and hands every taker its frames.

    Args:
        clip_bytes: the clip, or None.
        clip_uri: where it lies, or None.
        takers: what is made of it; after the call every window that they ordered has an outcome.
        limits: what decoding may cost.
    """
    try:
        with FrameReader(open_clip(clip_bytes, clip_uri), limits) as reader:
            orders = [order for taker in takers for order in taker.orders(reader)]
            times = [order.times_s for order in orders if order.times_s is not None]
            for frames in reader.windows(
                [order.indices for order in orders],
                times_s=times if len(times) == len(orders) else None,
                transform=[order.transform for order in orders],
            ):
                orders[frames.position].take(replace(frames, position=0))
    except ClipError as error:
        for taker in takers:
            taker.fail(str(error))
