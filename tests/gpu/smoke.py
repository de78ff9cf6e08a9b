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
    """Compares layers of FP8 that are changed with what vLLM makes of the same weights."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that layers can be called from here
    vllm_compat.prepare_environment()
    import torch
    from vllm import LLM
    from vllm.forward_context import set_forward_context

    settings = EngineSettings(model_path=str(model), kind="caption", fp8=True, max_model_len=4096)
    arguments = vllm_compat.engine_arguments(settings, vllm_compat.find_device())
    del arguments["enable_log_requests"]
    llm = LLM(**arguments | {"enforce_eager": True, "gpu_memory_utilization": 0.5})

    def compare(loaded: Any) -> None:
        block, decoder = loaded.visual.blocks[0], loaded.language_model.model.layers[0]
        for rows in (100, 2000):  # CUTLASS's products and cuBLAS's
            for norm, mlp in ((block.norm2, block.mlp), (decoder.post_attention_layernorm, decoder.mlp)):
                ours, theirs = mlp_errors(norm, mlp, rows)
                print(f"an MLP of {rows} rows is off by {ours:.4f}, vLLM's by {theirs:.4f}")
                assert ours < min(1.05 * theirs, 0.06)
        for longest in (64, 700):
            error = attention_error(block.attn, longest)
            print(f"attention within {longest} tokens differs by {error:.5f} from vLLM's")
            assert error < 0.003

    with torch.inference_mode(), set_forward_context(None, llm.llm_engine.vllm_config):
        llm.apply_model(compare)


def mlp_errors(norm: Any, mlp: Any, rows: int) -> tuple[float, float]:
    """How far the sum of two, its norm and an MLP are from what is exact: ours and vLLM's."""
    import torch
    from torch.nn.functional import rms_norm, silu
    from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.layernorm import RMSNorm

    def multiply(product: Any, x: torch.Tensor) -> torch.Tensor:
        kernel = product.quant_method.fp8_linear
        return CutlassFP8ScaledMMLinearKernel.apply_weights(kernel, product, x, product.bias)

    def multiply_exactly(product: Any, x: torch.Tensor) -> torch.Tensor:
        bias = 0 if product.bias is None else product.bias.double()
        return x @ (product.weight.double() * product.weight_scale.double()) + bias

    assert type(norm) is not RMSNorm, norm
    assert type(mlp.act_fn) is not SiluAndMul, mlp
    x, residual = torch.randn(2, rows, norm.hidden_size, dtype=torch.bfloat16, device="cuda")
    normed, total = RMSNorm.forward_native(norm, x.clone(), residual.clone())
    theirs = multiply(mlp.down_proj, SiluAndMul.forward_native(multiply(mlp.gate_up_proj, normed)))
    changed, sums = norm(x, residual)
    assert difference(sums, total) < 0.001
    exact = rms_norm(x.double() + residual, (norm.hidden_size,), norm.weight.double(), norm.variance_epsilon)
    gate, up = multiply_exactly(mlp.gate_up_proj, exact).chunk(2, dim=-1)
    exact = multiply_exactly(mlp.down_proj, silu(gate) * up)
    return difference(mlp(changed), exact), difference(theirs, exact)


def attention_error(attention: Any, longest: int) -> float:
    """How much attention of the tower differs from what vLLM computes with the same weights."""
    import torch
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VisionAttention

    assert type(attention) is not Qwen2_5_VisionAttention, attention
    lengths = torch.tensor([0, longest, longest // 2, 1, longest])
    bounds, tokens = lengths.cumsum(0).to(torch.int32).cuda(), int(lengths.sum())
    x = torch.randn(tokens, 1, attention.qkv.input_size, dtype=torch.bfloat16, device="cuda")
    angles = torch.randn(tokens, attention.hidden_size_per_attention_head // 2, device="cuda")
    given = bounds, angles.cos().bfloat16(), angles.sin().bfloat16(), torch.tensor(longest), None
    return difference(attention(x, *given), Qwen2_5_VisionAttention.forward(attention, x, *given))


def difference(ours: Any, theirs: Any) -> float:
    """Length of the difference, relative to the other one's."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


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
