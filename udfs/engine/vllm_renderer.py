"""What is said to vLLM's renderer, which turns conversations and frames into the engine's input."""

import asyncio
import json
import logging
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from conf.engine import EngineSettings, RenderSettings
from conf.errors import EngineError
from udfs.engine.rendering import (
    BARE_VIDEO_PLACEHOLDER,
    TEMPORAL_PATCH,
    VIDEO_PLACEHOLDER,
    allows_bytes,
    chat_text,
    video_prompt,
)
from udfs.engine.requests import CaptionRequest
from udfs.engine.vllm_pattern import GRID, PIXELS, SECONDS, Pattern, video_item, with_seconds
from udfs.engine.worker import normalized, patches

logger = logging.getLogger(__name__)

BYTES_TOLERANCE = 1e-5
MAX_PATTERNS = 256

Kind = tuple[str, tuple[int, ...], str]
"""The text in front of the video, the shape of the frames, and what the model is told of their times."""


def model_type(model_path: str) -> str:
    """Returns the `model_type` of the checkpoint at `model_path`; raises EngineError when there is none."""
    try:
        config = json.loads((Path(model_path) / "config.json").read_text(encoding="utf-8"))
        return str(config["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"model_path={model_path!r} is no checkpoint: {error!r}") from error


class Renderer:
    """Turns conversations and prompts into what the engine takes.

    Attributes:
        takes_bytes: whether the model rescales and normalizes `uint8` pixels.

    Args:
        renderer: vLLM's own.
        settings: of the engine.
    """

    def __init__(self, renderer: Any, settings: EngineSettings) -> None:
        self._renderer = renderer
        self.model_type = model_type(settings.model_path)
        self._template = self._find_template(settings)
        video_processor = getattr(self._template, "video_processor", None)
        self.image_mean = list(getattr(video_processor, "image_mean", ()))
        self.image_std = list(getattr(video_processor, "image_std", ()))
        self._bare_video = self._takes_bare_video()
        self.takes_bytes = False
        self._layout: tuple[int, int, int] | None = None
        self._patterns: dict[Kind, asyncio.Task[Pattern | None]] = {}
        self._told: set[tuple[bool, str]] = set()

    def _find_template(self, settings: EngineSettings) -> Any:
        if settings.kind == "text":
            return self._renderer.get_tokenizer()
        return self._renderer.get_mm_processor().info.get_hf_processor()

    def _takes_bare_video(self) -> bool:
        """Whether the outer start and end of a video are written by the processor.

        vLLM 0.27 says so of Qwen3-VL with transformers from 5.10 on; 0.23 knows only the older way.
        """
        if self.model_type != "qwen3_vl":
            return False
        asks = getattr(self._renderer.get_mm_processor(), "_expands_only_video_token", None)
        return bool(asks is not None and asks(self._template))

    def prompt_text(self, messages: list[dict[str, Any]]) -> str:
        """Returns the prompt text of `messages`, with the video placeholder that vLLM looks for."""
        text = chat_text(self._template, messages)
        return text.replace(VIDEO_PLACEHOLDER, BARE_VIDEO_PLACEHOLDER, 1) if self._bare_video else text

    @property
    def takes_frames(self) -> bool:
        """Whether the model cuts whole frames into patches as well, so that windows need no processor."""
        return self.takes_bytes and self._layout is not None

    def hands_over_bytes(self, render: RenderSettings) -> bool:
        """Whether a client's frames go to the model as `uint8`; says once where they could but may not."""
        if not self.takes_bytes or allows_bytes(render):
            return self.takes_bytes
        wish = (render.model_does_preprocess, render.preprocess_dtype)
        if wish not in self._told:
            self._told.add(wish)
            logger.info(
                "model_does_preprocess=%s preprocess_dtype=%s: pixels are normalized on the CPU", *wish
            )
        return False

    def probe_bytes(self) -> str | None:
        """Finds out what of the processor's work the model can do in its stead.

        One small window, whose last frame is alone, goes through the processor both ways.

        Returns:
            Why the model cannot rescale and normalize; None where it can.
        """
        import torch

        processor = getattr(self._template, "video_processor", None)
        channels = (len(self.image_mean), len(self.image_std))
        if processor is None or channels != (3, 3):
            return "its processor has no mean and deviation for three channels"
        depth, side, merge = processor.temporal_patch_size, processor.patch_size, processor.merge_size
        shape = (2 * depth - 1, 2 * merge * side, 3 * merge * side, 3)
        frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        switches = {"do_resize": False, "do_sample_frames": False, "return_tensors": "pt"}
        floats = processor(videos=[frames], **switches)["pixel_values_videos"]
        plain = processor(videos=[frames], **switches, do_rescale=False, do_normalize=False)
        pixels = normalized(plain["pixel_values_videos"], self.image_mean, self.image_std)
        # Equal but for the last bit: another line of transformers may multiply where this one divides.
        if not (floats.shape == pixels.shape and bool((floats - pixels).abs().max() < BYTES_TOLERANCE)):
            return "its processor does something else than rescaling and normalizing"
        grid = plain["video_grid_thw"][0].tolist()
        cut = patches(torch.from_numpy(frames), grid, (depth, side, merge))
        self._layout = (depth, side, merge) if cut.equal(plain["pixel_values_videos"]) else None
        return None

    async def render_video(
        self, request: CaptionRequest, render: RenderSettings, *, text: str, cache_key: str
    ) -> Any:
        """Returns one pass over a video as the engine takes it: token ids, pixels, grids.

        vLLM renders the first window of its kind; the next ones differ from it in nothing but pixels and
        times, so that they need no processor: their frames travel as they are, and the model cuts them
        into patches.

        Args:
            request: what was asked.
            render: how frames are prepared.
            text: the whole prompt text with one video placeholder.
            cache_key: equal for passes over the same video, so that the second one finds the first one's
                work in vLLM's caches. vLLM trusts it, so no two videos may share it.
        """
        as_bytes = self.hands_over_bytes(render)
        prompt = video_prompt(
            request,
            render,
            text=text,
            model_type=self.model_type,
            mean=self.image_mean,
            std=self.image_std,
            as_bytes=as_bytes,
            cache_key=cache_key,
        )
        if self._layout is None or not as_bytes or not self._fits(request.frames.shape, *self._layout[1:]):
            return await self._render(prompt)
        before, _, after = text.partition(BARE_VIDEO_PLACEHOLDER)
        ((_, metadata),) = prompt["multi_modal_data"]["video"]
        kind = (before, request.frames.shape, json.dumps(metadata))
        pattern = await self._pattern(kind, prompt, after)
        if pattern is None:
            return await self._render(prompt)
        return pattern.filled(
            request.frames,
            self._layout,
            seconds=_seconds_per_grid(prompt),
            text=text,
            tail=self._token_ids(after.removeprefix(pattern.dropped)),
            cache_key=cache_key,
        )

    async def _pattern(self, kind: Kind, prompt: dict[str, Any], after: str) -> Pattern | None:
        """Returns the pattern of a kind of windows; those that come while it is made wait for it."""
        task = self._patterns.get(kind)
        if task is None:
            while len(self._patterns) >= MAX_PATTERNS:
                self._patterns.pop(next(iter(self._patterns)))
            task = self._patterns[kind] = asyncio.create_task(self._make_pattern(kind, prompt, after))
        # The window that came first may be aborted; the others need the pattern still.
        return await asyncio.shield(task)

    async def _make_pattern(self, kind: Kind, prompt: dict[str, Any], after: str) -> Pattern | None:
        """Has vLLM render a window, under a name of its own that no cache knows."""
        try:
            first = await self._render(prompt | {"multi_modal_uuids": {"video": [str(uuid.uuid4())]}})
        except Exception:
            # What is wrong with this window may be right with the next one.
            self._patterns.pop(kind, None)
            return None
        pattern = Pattern.of(first, after, self._token_ids)
        if pattern is None:
            logger.warning("windows of %s go through the model's processor one by one", self.model_type)
        return pattern

    async def render_text(self, text: str) -> Any:
        """Returns a prompt without a video as the engine takes it."""
        return await self._render({"prompt": text})

    @staticmethod
    def _fits(shape: tuple[int, ...], side: int, merge: int) -> bool:
        """Whether frames of this shape are cut into whole groups of patches."""
        return not (shape[1] % (side * merge) or shape[2] % (side * merge))

    def _token_ids(self, text: str) -> list[int]:
        return list(self._renderer.get_tokenizer().encode(text, add_special_tokens=False))

    async def _render(self, prompt: dict[str, Any]) -> Any:
        (rendered,) = await self._renderer.render_cmpl_async([prompt])
        _restore_seconds(prompt, rendered)
        _keep_apart(rendered)
        return rendered


def _keep_apart(rendered: Any) -> None:
    """Marks videos whose pixels are `uint8`, so that vLLM puts them into no batch with others.

    It joins the pixels of videos that have the same fields, whatever their types.
    """
    item = video_item(rendered)
    if item is None or PIXELS not in item:
        return
    if str(item[PIXELS].data.dtype) == "torch.uint8":
        item["pixels_are_bytes"] = item[GRID]


def _restore_seconds(prompt: dict[str, Any], rendered: Any) -> None:
    """Puts the seconds between frames back, which vLLM has rounded to the model's type."""
    item = video_item(rendered)
    if item is not None and SECONDS in item:
        item[SECONDS] = with_seconds(item[SECONDS], _seconds_per_grid(prompt))


def _seconds_per_grid(prompt: dict[str, Any]) -> float:
    """Seconds between one pair of frames and the next; 1 for models that are told the times as text."""
    return TEMPORAL_PATCH / float(prompt["mm_processor_kwargs"].get("fps", TEMPORAL_PATCH))
