"""Renders windows as the host does, without an engine, and prints one JSON line per window.

python -m tests.udfs.engine.render_windows MODEL DTYPE
"""

import asyncio
import json
import sys
from typing import Any

import numpy as np

from conf.engine import EngineSettings, RenderSettings
from tests.udfs.engine.requests_maker import caption_request, colour_frames
from udfs.engine import rendering, vllm_compat

TIMES = ([0.0, 0.5, 1.0, 1.5], [5.0, 5.4, 5.9, 6.4, 7.0, 7.5, 8.1], [2.0, 2.0334, 2.0667, 2.1])


def main() -> None:
    vllm_compat.prepare_environment()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers import renderer_from_config

    settings = EngineSettings(model_path=sys.argv[1], kind="caption", dtype=sys.argv[2])
    arguments = vllm_compat.engine_arguments(settings, vllm_compat.Device("cpu", None))
    config = AsyncEngineArgs(**arguments).create_engine_config()
    renderer = vllm_compat.Renderer(renderer_from_config(config), settings)
    for number, times in enumerate(TIMES):
        print("WINDOW", json.dumps(asyncio.run(render(renderer, number, np.array(times)))), flush=True)


async def render(renderer: vllm_compat.Renderer, number: int, times_s: np.ndarray) -> dict[str, Any]:
    frames = colour_frames(number, len(times_s), 224, 224)
    request = caption_request(f"w{number}", frames=frames, times_s=times_s)
    text = renderer.prompt_text(rendering.caption_messages(request.prompt))
    rendered = await renderer.render(
        rendering.video_prompt(
            request,
            RenderSettings(),
            text=text,
            model_type=renderer.model_type,
            mean=renderer.image_mean,
            std=renderer.image_std,
            cache_key=request.request_key,
        )
    )
    item = rendered["mm_kwargs"]["video"][0]
    return {
        "prompt_text": text,
        "token_ids": list(rendered["prompt_token_ids"]),
        "grid": item["video_grid_thw"].data.tolist(),
        "timestamps": item["timestamps"].data if "timestamps" in item else None,
        "seconds": item["second_per_grid_ts"].data.item() if "second_per_grid_ts" in item else None,
    }


if __name__ == "__main__":
    main()
