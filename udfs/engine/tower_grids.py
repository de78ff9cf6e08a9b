"""What a vision tower works out from the grids of videos: positions, the order of patches, where frames end.

Nothing of it depends on pixels. vLLM works it out for each step anew, and copies it from pages that the card
cannot read by itself, which waits for all that the card has been given. Here it is kept for each grid, and
what a step's videos need is joined on the card.
"""

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cachetools import LRUCache
from torch.testing import assert_close

logger = logging.getLogger(__name__)

REMEMBERED_BYTES = 256 * 2**20
SAMPLE = ((2, 4, 6), (1, 10, 12), (3, 6, 4))
"""Grids of three small videos that differ in everything."""

BY_PATCH = {"rotary_pos_emb_cos", "rotary_pos_emb_sin", "pos_embeds"}
ORDERS = {"window_index", "reverse_indices"}
BOUNDS = {"cu_seqlens", "cu_window_seqlens"}
LONGEST = {"max_seqlen", "max_seqlen_full", "max_seqlen_window"}

Grid = tuple[int, ...]
"""Patches in time, height and width."""
Metadata = dict[str, Any]
"""What vLLM's towers call `encoder_metadata`: tensors by name, and None for what they don't need."""


class Remembering:
    """Calls a function of grids once for each grid, as long as what it returns fits into a share of memory.

    Attributes:
        joins: whether what it returns for several grids is made from what it returns for each. Where that
            gives something else than the function does, it is called once for each list of grids.

    Args:
        prepare: a tower's `prepare_encoder_metadata`.
        most_bytes: of the tensors that are kept.
    """

    def __init__(self, prepare: Callable[..., Metadata], *, most_bytes: int = REMEMBERED_BYTES) -> None:
        self._prepare = prepare
        self._known: LRUCache[tuple[Grid, ...], Metadata] = LRUCache(most_bytes, getsizeof=_num_bytes)
        self.joins = self._can_join()

    def __call__(self, grids: Any, **more: Any) -> Metadata:
        """Returns what the function does; it is called every time where more is said than grids."""
        if more or not isinstance(grids, list):
            return self._prepare(grids, **more)
        key = tuple(tuple(map(int, grid)) for grid in grids)
        if self.joins and len(key) > 1:
            return join([self._recall((grid,)) for grid in key], key)
        return self._recall(key)

    def _can_join(self) -> bool:
        """Whether joining says of small videos what the function says of them together."""
        try:
            with torch.inference_mode():
                apart = [self._prepare([list(grid)]) for grid in SAMPLE]
                together = self._prepare([list(grid) for grid in SAMPLE])
                assert_close(join(apart, SAMPLE), together, rtol=0, atol=0)
        except AssertionError as error:
            reason = f"together they give something else: {error}"
        except Exception as error:
            reason = repr(error)
        else:
            return True
        logger.warning("what a tower works out from grids is kept for each list of them: %s", reason)
        return False

    def _recall(self, key: tuple[Grid, ...]) -> Metadata:
        if key in self._known:
            return self._known[key]
        found = self._prepare([list(grid) for grid in key])
        if _num_bytes(found) <= self._known.maxsize:
            self._known[key] = found
        return found


def _num_bytes(metadata: Metadata) -> int:
    return sum(getattr(value, "nbytes", 0) for value in metadata.values())


def join(apart: Sequence[Metadata], grids: Sequence[Grid]) -> Metadata:
    """Returns what a tower would work out from several grids together.

    Args:
        apart: what it works out from each of them.
        grids: patches in time, height and width of each.

    Raises:
        ValueError: there is something among it of which is not known how it depends on others.
    """
    joined: Metadata = {}
    for name in apart[0]:
        parts = [metadata[name] for metadata in apart]
        if all(part is None for part in parts):
            joined[name] = None
        elif name in BY_PATCH:
            joined[name] = torch.cat(parts)
        elif name in ORDERS:
            joined[name] = torch.cat(_shifted(parts, map(len, parts)))
        elif name in BOUNDS:
            first, *others = _shifted(parts, map(math.prod, grids))
            joined[name] = torch.cat([first, *(bounds[1:] for bounds in others)])
        elif name in LONGEST:
            joined[name] = torch.stack(parts).amax()
        else:
            raise ValueError(f"how {name} depends on other videos is not known")
    return joined


def _shifted(parts: Sequence[torch.Tensor], lengths: Any) -> list[torch.Tensor]:
    """Returns the parts, each with the lengths of those before it added."""
    starts = itertools.accumulate(lengths, initial=0)
    return [part + start if start else part for part, start in zip(parts, starts, strict=False)]
