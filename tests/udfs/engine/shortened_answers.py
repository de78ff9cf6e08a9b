"""A model answers in a process of its own, its last layer shortened or not, and tells what that layer saw."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.udfs.engine.own_process import run_python

PROGRAM = "from tests.udfs.engine.shortened_answers import main; main()"
MARK = "ANSWERED "
STEP_TOKENS = 160
"""So few that long prompts are computed in parts, together with the answers of others."""
NUM_PROMPTS = 12
NUM_TOKENS = 24


def answers_of(model: Path, folder: Path, *ways: str) -> list[dict[str, Any]]:
    """Has a process answer `NUM_PROMPTS` prompts of many lengths.

    Args:
        model: folder of the checkpoint.
        folder: for what the process keeps.
        ways: "plain" leaves the model as vLLM makes it; "shortened" and "whole" shorten its last layer, and
            the latter has all rows computed nevertheless. The model is loaded once for all of them.

    Returns:
        For each way, `answers` of token ids, and `steps` of how many rows layer and MLP saw.
    """
    told = run_python(PROGRAM, folder, str(model), *ways, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    (line,) = (line for line in told.splitlines() if line.startswith(MARK))
    found: list[dict[str, Any]] = json.loads(line.removeprefix(MARK))
    return found


def main() -> None:
    """Answers in the ways that the command line names."""
    from udfs.engine.vllm_compat import CPU_BLOCK_TOKENS, CPU_MEMORY_SHARE, prepare_environment

    model, *ways = sys.argv[1:]
    prepare_environment()
    steps: list[list[int]] = []
    if ways != ["plain"]:
        _shorten(steps)
    from vllm import LLM

    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_batched_tokens=STEP_TOKENS,
        max_num_seqs=5,
        block_size=CPU_BLOCK_TOKENS,
        gpu_memory_utilization=CPU_MEMORY_SHARE,
        enable_prefix_caching=False,
    )
    steps.clear()
    print(MARK + json.dumps([_answer(llm, Path(model), way, steps) for way in ways]))


def _shorten(steps: list[list[int]]) -> None:
    from udfs.engine import last_layer

    shorten_layer = last_layer.shorten_layer

    def watch(layer: Any, named: dict[str, Any]) -> None:
        shorten_layer(layer, named)
        layer.register_forward_pre_hook(lambda _, given: steps.append([len(given[1])]))
        layer.mlp.register_forward_pre_hook(lambda _, given: steps[-1].append(len(given[0])))

    last_layer.shorten_layer = watch
    last_layer.shorten_models()


def _answer(llm: Any, model: Path, way: str, steps: list[list[int]]) -> dict[str, Any]:
    from vllm import SamplingParams

    from udfs.engine import last_layer

    rows_read = last_layer.rows_read
    if way == "whole":
        last_layer.rows_read = lambda *given: None
    parameters = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)
    outputs = llm.generate(prompts_of(model), parameters, use_tqdm=False)
    last_layer.rows_read = rows_read
    seen, steps[:] = list(steps), []
    return {"answers": [list(output.outputs[0].token_ids) for output in outputs], "steps": seen}


def prompts_of(model: Path) -> list[dict[str, Any]]:
    """Returns prompts for a checkpoint, with videos where it sees."""
    from tests.udfs.engine.requests_maker import colour_frames
    from udfs.engine.rendering import BARE_VIDEO_PLACEHOLDER, VIDEO_PLACEHOLDER, video_inputs

    model_type = json.loads((model / "config.json").read_text())["model_type"]
    prompts: list[dict[str, Any]] = []
    for number in range(NUM_PROMPTS):
        asked = "Describe the video in detail." + " Tell all of it." * (number * 5 % 12)
        if "vl" in model_type:
            num_frames = 4 + number % 5
            metadata, switches = video_inputs(model_type, 0.5 * np.arange(num_frames))
            qwen3 = model_type == "qwen3_vl"
            frames = colour_frames(number, num_frames, *((128, 192) if qwen3 else ()))
            asked = (BARE_VIDEO_PLACEHOLDER if qwen3 else VIDEO_PLACEHOLDER) + asked
            prompts.append(
                {
                    "multi_modal_data": {"video": [(frames, metadata)]},
                    "mm_processor_kwargs": switches | {"do_resize": False},
                }
            )
        else:
            prompts.append({})
        prompts[-1]["prompt"] = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    return prompts
