"""Windows through vLLM's `LLM`: the peer's way, and the card alone under Captionlake's settings.

Started by `benchmarks.gpu_captions`, since a card is free again only when its process has ended. Takes its
order as JSON on the command line and prints one line of JSON for each mode.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any

from benchmarks.gpu.profile import read_profile
from benchmarks.gpu.work import PROMPT, WORKLOADS, CaptionWorkload, Workload
from conf.engine import EngineSettings
from udfs.engine import vllm_compat
from udfs.engine.rendering import caption_messages, chat_text, text_messages
from udfs.engine.vllm_renderer import Renderer

PEER_MEMORY_SHARE = 0.85
PEER_BATCHED_TOKENS = 32_768
PEER_MODEL_LEN = 32_768
WARM_UP = 8
PROFILED = 24
PROFILE_MARK = "PROFILE "
BEGIN_MARK = "BEGIN"


@dataclass(frozen=True)
class LLMOrder:
    """What one process does.

    Attributes:
        settings: of Captionlake's engine; the peer's are its own, but for the model and FP8.
        work: name of the workload.
        folder: where clips are.
        modes: windows of each mode, by its name, in this order.
        profile: folder for a profile of the card alone, made when its mode has been measured; None for none.
    """

    settings: dict[str, Any]
    work: str
    folder: str
    modes: dict[str, int] = field(default_factory=dict)
    profile: str | None = None


def peer_arguments(settings: EngineSettings, device: vllm_compat.Device) -> dict[str, Any]:
    """The peer's arguments, and vLLM's defaults otherwise.

    For videos: prepared frames, its memory share and batch size. For texts: the same memory share, and as
    many in flight as our engine has, so that both decode the same batches.
    """
    no_card = {"enforce_eager": True, "gpu_memory_utilization": vllm_compat.CPU_MEMORY_SHARE}
    videos = {
        "limit_mm_per_prompt": {"image": 0, "video": 1},
        "mm_processor_kwargs": {"do_resize": False, "do_rescale": False, "do_normalize": False},
        "mm_processor_cache_gb": 0,
        "max_num_batched_tokens": PEER_BATCHED_TOKENS,
    }
    return {
        "model": settings.model_path,
        "quantization": "fp8" if settings.fp8 else None,
        "max_model_len": PEER_MODEL_LEN,
        "gpu_memory_utilization": PEER_MEMORY_SHARE,
        "dtype": settings.dtype,
        "load_format": settings.vllm_arguments.get("load_format", "auto"),
        **(videos if settings.kind == "caption" else {"max_num_seqs": settings.max_in_flight}),
        **({} if device.is_gpu else no_card),
    }


def sampling(lengths: list[int]) -> list[Any]:
    """Each answer has its length, whatever the model says."""
    from vllm import SamplingParams

    return [
        SamplingParams(
            temperature=0.1, top_p=0.001, repetition_penalty=1.05, max_tokens=length, ignore_eos=True
        )
        for length in lengths
    ]


def peer_prompts(work: Workload[Any], folder: Path, renderer: Any, windows: int) -> list[dict[str, Any]]:
    """Prompts as the peer prepares them."""
    if isinstance(work, CaptionWorkload):
        return _video_prompts(work, folder, renderer, windows)
    tokenizer = renderer.get_tokenizer()
    return [
        {"prompt": chat_text(tokenizer, text_messages(request))} for request in work.requests(folder, windows)
    ]


def _video_prompts(work: CaptionWorkload, folder: Path, renderer: Any, windows: int) -> list[dict[str, Any]]:
    """Prompts with frames that are resized, rescaled and normalized already; each has pixels of its own."""
    import torch

    processor = renderer.get_mm_processor().info.get_hf_processor()
    text = chat_text(processor, caption_messages(PROMPT))
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in (processor.video_processor.image_mean, processor.video_processor.image_std)
    )
    prompts = []
    for request in work.requests(folder, windows):
        frames = torch.from_numpy(request.frames).permute(0, 3, 1, 2).float().div_(255)
        frames = frames.sub_(mean).div_(std)
        video = frames if work.variant.name == "qwen" else (frames, _peer_metadata(len(frames)))
        prompts.append({"prompt": text, "multi_modal_data": {"video": video}})
    return prompts


def _renew(prompts: list[dict[str, Any]], numbers: Iterator[int]) -> list[dict[str, Any]]:
    """Changes a pixel of every video, so that no cache has seen it; texts are distinct, and asked once."""
    for prompt in prompts:
        for video in prompt.get("multi_modal_data", {}).values():
            (video[0] if isinstance(video, tuple) else video)[0, 0, 0, 0] = next(numbers) / 1000
    return prompts


def _peer_metadata(num_frames: int) -> dict[str, Any]:
    """What newer models are told of the frames' times: how many there are, at two a second."""
    return {"fps": 2.0, "total_num_frames": num_frames, "frames_indices": list(range(num_frames))}


def run_peer(order: LLMOrder, settings: EngineSettings) -> None:
    """The peer's way: chunk after chunk, or everything at once."""
    from vllm import LLM

    work, start = WORKLOADS[order.work], time.monotonic()
    llm = LLM(**peer_arguments(settings, vllm_compat.find_device()))
    start_s = time.monotonic() - start
    most, numbers = max(order.modes.values()), count()
    prompts = peer_prompts(work, Path(order.folder), llm.renderer, most + WARM_UP)
    llm.generate(_renew(prompts[most:], numbers), sampling([16] * WARM_UP), use_tqdm=False)
    for mode, windows in order.modes.items():
        chosen, lengths = _renew(prompts[:windows], numbers), work.lengths(windows)
        size = int(mode.rpartition("_")[2]) if "chunks" in mode else windows

        def generate(chosen: Any = chosen, lengths: Any = lengths, size: int = size) -> list[Any]:
            return [
                output
                for at in range(0, len(chosen), size)
                for output in llm.generate(
                    chosen[at : at + size], sampling(lengths[at : at + size]), use_tqdm=False
                )
            ]

        resolved = vllm_compat.resolved_settings(llm.llm_engine.vllm_config)
        tell(mode, generate, engine_start_s=start_s, resolved=resolved)


def run_alone(order: LLMOrder, settings: EngineSettings) -> None:
    """The card alone: everything is rendered, then handed over, then waited for."""
    from vllm import LLM

    ((mode, windows),) = order.modes.items()
    work, start = WORKLOADS[order.work], time.monotonic()
    device = vllm_compat.find_device()
    vllm_compat.limit_threads(device)
    arguments = vllm_compat.engine_arguments(settings, device)
    arguments.pop("enable_log_requests")
    if order.profile is not None:
        options = {"profiler": "torch", "torch_profiler_dir": order.profile}
        arguments["profiler_config"] = options | {"torch_profiler_with_stack": False}
    llm = LLM(**arguments)
    start_s = time.monotonic() - start
    renderer = Renderer(llm.renderer, settings)
    assert llm.collective_rpc("remember_grids") == [True]
    assert (reason := renderer.probe_bytes()) is None, reason
    assert llm.collective_rpc("take_bytes", args=(renderer.image_mean, renderer.image_std)) == [True]
    renderer.takes_bytes = True
    text = renderer.prompt_text(caption_messages(PROMPT))
    requests = work.requests(Path(order.folder), windows + WARM_UP)
    rendered = asyncio.run(_render(renderer, requests, settings, text))
    numbers = count()

    def enqueue(prompts: Iterable[Any], lengths: list[int]) -> None:
        for prompt, parameters in zip(prompts, sampling(lengths), strict=False):
            llm.llm_engine.add_request(str(next(numbers)), prompt, parameters)

    def generate(prompts: list[Any], lengths: list[int]) -> list[Any]:
        enqueue(prompts, lengths)
        return list(llm.wait_for_completion(use_tqdm=False))

    generate(rendered[windows:], [16] * WARM_UP)
    resolved = vllm_compat.resolved_settings(llm.llm_engine.vllm_config)

    def measured() -> list[Any]:
        return generate(rendered[:windows], work.lengths(windows))

    tell(mode, measured, engine_start_s=start_s, resolved=resolved)
    if order.profile is not None:
        # When as many have ended as are in flight, about as many begin as end.
        enqueue(cycle(rendered), work.lengths(2 * settings.max_in_flight + PROFILED))
        _finish(llm, settings.max_in_flight)
        llm.start_profile()
        profiled = _finish(llm, PROFILED)
        llm.stop_profile()
        print(PROFILE_MARK + json.dumps(read_profile(Path(order.profile), profiled)), flush=True)


def _finish(llm: Any, least: int) -> int:
    """Goes on until `least` windows more are finished, and another one begun for each; returns how many."""
    finished = 0
    while finished < least:
        finished += sum(output.finished for output in llm.llm_engine.step())
    return finished


async def _render(renderer: Renderer, requests: list[Any], settings: EngineSettings, text: str) -> list[Any]:
    return [
        await renderer.render_video(request, settings.render, text=text, cache_key=str(at))
        for at, request in enumerate(requests)
    ]


def tell(mode: str, generate: Callable[[], list[Any]], **known: Any) -> None:
    """Prints that it begins, and how long it takes, with what is known of it besides."""
    print(BEGIN_MARK, flush=True)
    start, cpu_s = time.monotonic(), time.process_time()
    outputs = generate()
    wall_s = time.monotonic() - start
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(
        json.dumps(
            {
                "mode": mode,
                "windows": len(outputs),
                "windows_per_s": len(outputs) / wall_s,
                "wall_s": wall_s,
                "prompt_tokens": sum(len(output.prompt_token_ids) for output in outputs) / len(outputs),
                "output_tokens": tokens / len(outputs),
                "output_tokens_per_s": tokens / wall_s,
                "cpu_s_per_window": {"front": (time.process_time() - cpu_s) / len(outputs)},
                "versions": vllm_compat.versions(),
                "device": vllm_compat.find_device().name,
                **known,
            }
        ),
        flush=True,
    )


def main() -> None:
    """Carries out the order."""
    order = LLMOrder(**json.loads(sys.argv[1]))
    settings = EngineSettings(**order.settings)
    vllm_compat.prepare_environment()
    (run_alone if "gpu_alone" in order.modes else run_peer)(order, settings)


def command(order: LLMOrder) -> list[str]:
    """The command of a process that carries out `order`."""
    return [sys.executable, "-m", "benchmarks.gpu.llm", json.dumps(asdict(order))]


if __name__ == "__main__":
    main()
