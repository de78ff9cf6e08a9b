"""Renders windows as the host does, without an engine, in a process of its own."""

import asyncio
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conf.engine import EngineSettings, RenderSettings
from udfs.engine import rendering, vllm_compat
from udfs.engine.launch import host_environment
from udfs.engine.requests import CaptionRequest
from udfs.engine.runtime import Place
from udfs.engine.slot import Slot
from udfs.engine.vllm_renderer import Renderer

PROGRAM = "from tests.udfs.engine.render_windows import main; main()"
TIMEOUT_S = 300


@dataclass(frozen=True)
class RenderJob:
    """Windows for one model; only their first pass is rendered.

    Attributes:
        model: folder of the checkpoint.
        dtype: of the engine.
        requests: the windows.
        takes_bytes: render for an engine that prepares pixels itself.
    """

    model: str
    dtype: str
    requests: list[CaptionRequest]
    takes_bytes: bool = False


@dataclass(frozen=True)
class Rendered:
    """What vLLM makes of a window.

    Attributes:
        prompt_text: with one placeholder for the video.
        token_ids: with one token for each patch of the video.
        positions: (3, tokens), as vLLM's model computes them.
        tensors: what the processor made of the video, by name.
    """

    prompt_text: str
    token_ids: list[int]
    positions: np.ndarray
    tensors: dict[str, Any]


def render_windows(jobs: list[RenderJob], folder: Path) -> list[list[Rendered]]:
    """Renders the windows of each job in a process like the host's; its files go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    slot = Slot.of_process()
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    environment = host_environment(slot, Place.of(slot, "render"), sys.executable)
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rendered: list[list[Rendered]] = pickle.loads((folder / "rendered.pickle").read_bytes())
    return rendered


def main() -> None:
    """Renders the jobs in the folder that is named on the command line."""
    folder = Path(sys.argv[1])
    vllm_compat.prepare_environment()
    jobs: list[RenderJob] = pickle.loads((folder / "jobs.pickle").read_bytes())
    rendered = [render_job(job) for job in jobs]
    (folder / "rendered.pickle").write_bytes(pickle.dumps(rendered))


def render_job(job: RenderJob) -> list[Rendered]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.model_executor.model_loader import get_model_cls
    from vllm.renderers import renderer_from_config

    settings = EngineSettings(model_path=job.model, kind="caption", dtype=job.dtype)
    arguments = vllm_compat.engine_arguments(settings, vllm_compat.Device("cpu", None))
    config = AsyncEngineArgs(**arguments).create_engine_config()
    renderer = Renderer(renderer_from_config(config), settings)
    renderer.takes_bytes = job.takes_bytes and renderer.probe_bytes() is None
    model = get_model_cls(config.model_config)
    # The model's own code for positions needs nothing of the model but its configuration.
    positions = model.__new__(model)
    object.__setattr__(positions, "config", config.model_config.hf_config)
    return asyncio.run(render_all(renderer, positions, job.requests))


async def render_all(renderer: Renderer, model: Any, requests: list[CaptionRequest]) -> list[Rendered]:
    """Renders all at once, as the host does."""
    jobs = [render(renderer, model, request, str(k)) for k, request in enumerate(requests)]
    return list(await asyncio.gather(*jobs))


async def render(renderer: Renderer, model: Any, request: CaptionRequest, cache_key: str) -> Rendered:
    from vllm.multimodal.inputs import MultiModalFeatureSpec

    text = renderer.prompt_text(rendering.caption_messages(request.prompt))
    rendered = await renderer.render_video(request, RenderSettings(), text=text, cache_key=cache_key)
    (item,), (place,) = rendered["mm_kwargs"]["video"], rendered["mm_placeholders"]["video"]
    feature = MultiModalFeatureSpec(item, "video", cache_key, place)
    token_ids = list(rendered["prompt_token_ids"])
    found, _ = model.get_mrope_input_positions(token_ids, [feature])
    tensors = {name: plain(element.data) for name, element in item.items()}
    return Rendered(text, token_ids, found.numpy(), tensors)


def plain(value: Any) -> Any:
    if not hasattr(value, "numpy"):
        return value
    return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
