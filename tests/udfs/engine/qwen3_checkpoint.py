"""A small random Qwen3-VL, made from the tokenizer of the demo checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

from conf.variants import ModelVariant
from demo.make_checkpoints import VOCAB_SIZE, token_id

SMALL_QWEN3 = ModelVariant(
    "qwen3", "random/qwen3-vl", "random/qwen3", patch_px=32, min_patches=16, max_patches=64
)

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def qwen3_config() -> dict[str, Any]:
    """The `config.json` of a Qwen3-VL with two layers of each kind."""
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5000000.0,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_interleaved": True,
                "mrope_section": [12, 10, 10],
            },
            "eos_token_id": token_id("<|im_end|>"),
            "bos_token_id": token_id("<|endoftext|>"),
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 2,
            "out_hidden_size": 128,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0],
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
        },
    }


def make_qwen3_checkpoint(folder: Path, base: Path, *, with_weights: bool = False) -> Path:
    """Writes everything that rendering needs into `folder`, and random weights when asked."""
    folder.mkdir(parents=True)
    for name in COPIED:
        shutil.copy(base / name, folder / name)
    (folder / "config.json").write_text(json.dumps(qwen3_config()))
    shared = {
        "processor_class": "Qwen3VLProcessor",
        "patch_size": 16,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 16 * 32 * 32, "longest_edge": 1024 * 32 * 32},
    }
    image = {**shared, "image_processor_type": "Qwen2VLImageProcessorFast"}
    video = {**shared, "video_processor_type": "Qwen3VLVideoProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    if with_weights:
        _write_weights(folder)
    return folder


def _write_weights(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(AutoConfig.from_pretrained(folder))
    for weight in model.parameters():
        if weight.ndim > 1:  # matrices keep the variance of what flows through them
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    model.to(torch.bfloat16)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    from safetensors.torch import save_file

    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
