"""vLLM's scheduler in a process of its own, with an engine's configuration and without a model."""

import json
import sys
from pathlib import Path
from typing import Any

from conf.engine import EngineSettings
from tests.udfs.engine.own_process import run_python

PROGRAM = "from tests.udfs.engine.scheduled_videos import main; main()"
MARK = "SCHEDULED "
STEP_TOKENS = 1024
VIDEO_TOKENS = 400
"""Two videos with the text around them are a step; a third one has no room in it."""
REQUESTS = 12
STEPS = 6


def videos_of_steps(model: Path, folder: Path, ways: list[dict[str, Any]]) -> list[list[int]]:
    """Returns how many videos are encoded in each of the first steps of an engine with work enough.

    Args:
        model: folder of the checkpoint.
        folder: for what the process keeps.
        ways: for each engine, `ahead`, whether a step is scheduled before the last one has ended, and
            vLLM's `additional_config`.
    """
    told = run_python(PROGRAM, folder, str(model), json.dumps(ways))
    (line,) = (line for line in told.splitlines() if line.startswith(MARK))
    counted: list[list[int]] = json.loads(line.removeprefix(MARK))
    return counted


def main() -> None:
    """Schedules in the ways that the command line names."""
    from udfs.engine import vllm_compat

    model, ways = sys.argv[1:]
    vllm_compat.prepare_environment()
    counted = []
    for way in json.loads(ways):
        given = {"max_num_batched_tokens": STEP_TOKENS, "additional_config": way["additional_config"]}
        settings = EngineSettings(
            model_path=model, kind="caption", max_model_len=1024, disable_mmcache=True, vllm_arguments=given
        )
        arguments = vllm_compat.engine_arguments(settings, vllm_compat.Device("cpu", None))
        config = vllm_compat.engine_config(arguments)
        assert not config.scheduler_config.async_scheduling, "vLLM schedules nothing ahead on a CPU"
        if way["ahead"]:
            config.scheduler_config.async_scheduling = True
            vllm_compat.make_room_for_videos(config)
        counted.append(_schedule(config))
    print(MARK + json.dumps(counted))


def _schedule(config: Any) -> list[int]:
    """As vLLM's engine does: where steps are scheduled ahead, before the last one's answers are known."""
    from vllm.v1.outputs import ModelRunnerOutput

    scheduler, videos, steps = _scheduler(config), [], []
    for number in range(REQUESTS):
        scheduler.add_request(_request(str(number)))
    ahead = 1 if config.scheduler_config.async_scheduling else 0
    while len(videos) < STEPS:
        steps.append(scheduler.schedule())
        videos.append(sum(map(len, steps[-1].scheduled_encoder_inputs.values())))
        if len(steps) > ahead:
            ended = steps.pop(0)
            ids = list(ended.num_scheduled_tokens)
            places = {name: place for place, name in enumerate(ids)}
            answers = [[1] if _is_answered(scheduler, ended, name) else [] for name in ids]
            scheduler.update_from_output(
                ended, ModelRunnerOutput(req_ids=ids, req_id_to_index=places, sampled_token_ids=answers)
            )
    return videos


def _is_answered(scheduler: Any, step: Any, name: str) -> bool:
    """Whether a step reached the end of a request's prompt."""
    computed = {new.req_id: new.num_computed_tokens for new in step.scheduled_new_reqs}
    cached = step.scheduled_cached_reqs
    computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    prompt = scheduler.requests[name].num_prompt_tokens
    return bool(computed[name] + step.num_scheduled_tokens[name] >= prompt)


def _request(name: str) -> Any:
    from vllm import SamplingParams
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
    from vllm.v1.request import Request

    position = PlaceholderRange(offset=3, length=VIDEO_TOKENS)
    video = MultiModalFeatureSpec(data=None, modality="video", identifier=name, mm_position=position)
    parameters = SamplingParams(max_tokens=100, ignore_eos=True)
    parameters.update_from_generation_config({}, 0)
    return Request(name, [1] * (VIDEO_TOKENS + 6), parameters, None, mm_features=[video])


def _scheduler(config: Any) -> Any:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    block = config.cache_config.block_size
    layer = FullAttentionSpec(block_size=block, num_kv_heads=1, head_size=1, dtype=torch.float32)
    config.cache_config.num_gpu_blocks = 1000
    cache = KVCacheConfig(1000, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)])
    return config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=block,
    )
