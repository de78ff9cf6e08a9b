"""A window that vLLM has rendered, from which others of its kind are made without the model's processor."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from udfs.engine.worker import FRAMES_MARK

PIXELS, GRID, SECONDS = "pixel_values_videos", "video_grid_thw", "second_per_grid_ts"
VIDEO_END = "<|vision_end|>"


@dataclass(frozen=True)
class Pattern:
    """What windows have in common that differ in nothing but pixels, times, and the text behind the video.

    Attributes:
        rendered: what vLLM made of the first of them, without its pixels.
        head: token ids up to the end of the video.
        dropped: what stands behind the video's token in a prompt's text and is part of the video here.
    """

    rendered: dict[str, Any]
    head: list[int]
    dropped: str

    @classmethod
    def of(cls, rendered: Any, after: str, token_ids: Callable[[str], list[int]]) -> "Pattern | None":
        """Returns the pattern of a rendered window; None when it is made in another way.

        Args:
            rendered: by vLLM.
            after: the prompt's text behind the video's token.
            token_ids: the tokenizer.
        """
        (place,) = rendered["mm_placeholders"]["video"]
        item = video_item(rendered)
        end = place.offset + place.length
        ids = list(rendered["prompt_token_ids"])
        if item is None or PIXELS not in item:
            return None
        for dropped in ("", VIDEO_END):
            if after.startswith(dropped) and token_ids(after.removeprefix(dropped)) == ids[end:]:
                bare = copy.copy(item)
                # `take_bytes` brings frames to the device: vLLM 0.23 waits for the device when it does.
                stays = replace(item[PIXELS].field, keep_on_cpu=True)
                bare[PIXELS] = replace(item[PIXELS], data=None, field=stays)
                return cls(_with_item(rendered, bare), ids[:end], dropped)
        return None

    def filled(
        self,
        frames: npt.NDArray[np.uint8],
        layout: tuple[int, int, int],
        *,
        seconds: float,
        text: str,
        tail: list[int],
        cache_key: str,
    ) -> dict[str, Any]:
        """Returns another window of this kind as the engine takes it; its pixels are the frames themselves.

        Args:
            frames: (n, height, width, 3), of the shape of the pattern's.
            layout: of the patches, see `udfs.engine.worker.patches`.
            seconds: between one pair of frames and the next.
            text: the whole prompt text.
            tail: token ids of what stands in it behind the video.
            cache_key: names the video in vLLM's caches.
        """
        import torch

        item = copy.copy(video_item(self.rendered))
        # A list, since vLLM would copy the tensors of a batch into one while the device waits for them.
        item[PIXELS] = replace(item[PIXELS], data=[torch.from_numpy(frames)])
        item[FRAMES_MARK] = replace(item[GRID], data=torch.tensor(layout))
        if SECONDS in item:
            item[SECONDS] = with_seconds(item[SECONDS], seconds)
        return _with_item(self.rendered, item) | {
            "prompt": text,
            "prompt_token_ids": [*self.head, *tail],
            "mm_hashes": {"video": [cache_key]},
            "arrival_time": time.time(),
        }


def _with_item(rendered: Any, item: Any) -> dict[str, Any]:
    """Returns a copy of `rendered` with another item for its video."""
    items = type(rendered["mm_kwargs"])({"video": [item]})
    return {**rendered, "mm_kwargs": items}


def video_item(rendered: Any) -> Any:
    """What the processor made of the video of a rendered prompt: tensors by name.

    None where there is no video, and where vLLM has it in its cache already.
    """
    return ((rendered.get("mm_kwargs") or {}).get("video") or [None])[0]


def with_seconds(element: Any, seconds: float) -> Any:
    """Returns the seconds between pairs of frames as a model takes them, not rounded to its own type."""
    import torch

    return replace(element, data=torch.full_like(element.data, seconds, dtype=torch.float32))
