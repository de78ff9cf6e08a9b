"""Captions and enhancements on a real card, outside Spark: `python -m tests.gpu.smoke FOLDER`.

Makes small random checkpoints and some clips in FOLDER, decodes the clips as a task does, has engines of
Qwen2.5-VL, Qwen3-VL and, where the card can, FP8 answer on the first card, and says what it saw: versions,
device, precision, vLLM's resolved settings, load time, how busy the card was, answers, and that nothing is
left behind.
"""

import json
import logging
import os
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from conf.engine import EngineSettings, RenderSettings
from conf.variants import DEMO, ModelVariant
from demo.make_checkpoints import make_checkpoints
from demo.make_clips import write_scene
from tests.udfs.engine.qwen3_checkpoint import SMALL_QWEN3, make_qwen3_checkpoint
from udfs.captioning import CaptionPlan, ClipWork, WindowWork, caption_clips
from udfs.cutting import ClipRef, WindowRule, cut_clip
from udfs.engine import vllm_compat
from udfs.engine.client import EngineClient
from udfs.engine.requests import CaptionRequest, Generation, Reply, TextRequest
from udfs.engine.slot import Slot
from udfs.enhancing import EnhancePlan, enhance_captions
from udfs.video import Limits

NUM_CLIPS = 24
GENERATION = Generation(temperature=0.0, max_output_tokens=32)


def clips_of(folder: Path) -> list[ClipWork]:
    """Writes clips and cuts them as the job `windows` does."""
    works = []
    for seed in range(NUM_CLIPS):
        path = write_scene(folder / f"clip_{seed}.mp4", seed=seed, seconds=2 + seed % 5, frame_rate=25)
        clip = ClipRef(path.stem, seed, None, None, str(path))
        windows = cut_clip(clip, WindowRule(2.0, 256, 128), Limits())
        wanted = [WindowWork(row["window_id"], row["frame_indices"], None) for row in windows]
        works.append(ClipWork(clip.clip_id, None, str(path), wanted))
    return works


def caption(
    model: Path, variant: ModelVariant, works: list[ClipWork], *, fp8: bool = False, stage2: bool = False
) -> list[dict[str, Any]]:
    """Captions the clips and prints what the engine says of itself."""
    settings = EngineSettings(
        model_path=str(model),
        kind="caption",
        fp8=fp8,
        max_model_len=4096,
        render=RenderSettings.of_variant(variant),
    )
    plan = CaptionPlan(
        variant=variant,
        prompt="What moves?",
        stage2_prompt="Say it better:\n\n" if stage2 else None,
        generation=GENERATION,
        limits=Limits(),
        full_size=False,
        max_pending=64,
        verbose=False,
    )
    with EngineClient(settings, Slot.of_process(gpu="0")) as client:
        start = time.monotonic()
        status = client.wait_ready()
        tell(f"caption {variant.name}", status)
        assert status["takes_frames"] is status["remembers_grids"] is True
        assert (status["precision"] == "fp8") is fp8

        def submit(request: CaptionRequest) -> "Future[Reply]":
            return client.submit(request, 16)

        loaded = time.monotonic()
        answers = [
            answer for batch in caption_clips([works], submit, plan) for clip in batch for answer in clip
        ]
        wall_s, busy_s = time.monotonic() - loaded, client.status()["busy_s"]
        print(f"load_s={loaded - start:.1f} captions={len(answers)} in {wall_s:.2f} s, busy {busy_s:.2f} s")
        assert 0 < busy_s <= wall_s
    wanted = [window.window_id for work in works for window in work.windows]
    assert [answer["window_id"] for answer in answers] == wanted
    assert all(answer["caption_status"] in ("success", "truncated") for answer in answers), answers
    assert len({answer["caption"] for answer in answers}) > 1
    return answers


def enhance(models: Path, captions: list[dict[str, Any]]) -> None:
    """Enhances the captions on the same card, whose engine has to make room."""
    settings = EngineSettings(
        model_path=str(models / DEMO.text_model_id), kind="text", dtype="bfloat16", max_model_len=4096
    )
    plan = EnhancePlan(prompt="Rewrite this.", generation=GENERATION, max_pending=64, verbose=False)
    pairs = [(answer["window_id"], answer["caption"] or "nothing") for answer in captions]
    with EngineClient(settings, Slot.of_process(gpu="0")) as client:
        tell("enhance", client.wait_ready())

        def submit(request: TextRequest) -> "Future[Reply]":
            return client.submit(request, 16)

        (answers,) = enhance_captions([pairs], submit, plan)
        assert [answer["window_id"] for answer in answers] == [window_id for window_id, _ in pairs]
        assert all(answer["enhanced_status"] != "error" for answer in answers), answers
        client.stop_host()
    print(f"enhanced={len(answers)}")


def compare_layers(model: Path) -> None:
    """Compares layers that quantize the product of their activation, and a rotation, with vLLM's own."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that layers can be called from here
    import torch
    from vllm import LLM

    settings = EngineSettings(model_path=str(model), kind="caption", fp8=True, max_model_len=4096)
    arguments = vllm_compat.engine_arguments(settings, vllm_compat.find_device())
    del arguments["enable_log_requests"]
    llm = LLM(**arguments | {"enforce_eager": True, "gpu_memory_utilization": 0.5})

    def compare(loaded: Any) -> list[float]:
        errors = []
        for layer in (loaded.visual.blocks[0].mlp, loaded.language_model.model.layers[0].mlp):
            assert layer.quantizes_product, layer
            x = torch.randn(100, layer.gate_up_proj.input_size, dtype=torch.bfloat16, device="cuda")
            ours, theirs = layer(x).float(), type(layer).forward.__wrapped__(layer, x).float()
            errors.append(((ours - theirs).norm() / theirs.norm()).item())
        rotation = loaded.visual.blocks[0].attn.apply_rotary_emb
        x = torch.randn(2, 100, 2, 64, dtype=torch.bfloat16, device="cuda")
        angles = torch.randn(2, 100, 32, dtype=torch.bfloat16, device="cuda")
        ours, theirs = (turn(x, *angles).float() for turn in (rotation.forward_native, rotation.forward_cuda))
        return [*errors, ((ours - theirs).norm() / theirs.norm()).item()]

    with torch.inference_mode():
        (errors,) = llm.apply_model(compare)
    print("activations and rotations differ by", errors)
    # Some numbers fall to another side when they are rounded to eight bits, since vLLM rounds to 16 before.
    assert all(0 <= error < 0.03 for error in errors)


def tell(what: str, status: dict[str, Any]) -> None:
    """Prints the engine's account of itself."""
    print(what, json.dumps({name: status[name] for name in ("device", "precision", "versions", "resolved")}))


def main(folder: Path) -> None:
    """Runs the smoke test in a folder."""
    logging.basicConfig(level=logging.INFO)
    folder.mkdir(parents=True, exist_ok=True)
    models = folder / "models"
    if not (models / DEMO.text_model_id).exists():
        make_checkpoints(models)
    works = clips_of(folder)
    print("clips", len(works), flush=True)
    captions = caption(models / DEMO.caption_model_id, DEMO, works, stage2=True)
    print("first", captions[0], flush=True)
    enhance(models, captions)
    qwen3 = folder / "qwen3"
    if not qwen3.exists():
        make_qwen3_checkpoint(qwen3, models / DEMO.caption_model_id, with_weights=True)
    print("first", caption(qwen3, SMALL_QWEN3, works)[0], flush=True)
    if (vllm_compat.find_device().capability or (0, 0)) >= vllm_compat.FP8_CAPABILITY:
        caption(models / DEMO.caption_model_id, DEMO, works, fp8=True)
        compare_layers(models / DEMO.caption_model_id)
    print("smoke test passed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
