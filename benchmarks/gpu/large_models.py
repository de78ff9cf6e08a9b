"""Checkpoints with the dimensions of the published models and without weights, for measuring speed.

`python -m benchmarks.gpu.large_models FOLDER` writes them. An engine that is told `load_format=dummy` makes
up the weights; what it then says means nothing, and takes as long as with the real ones. The tokenizer has
as many tokens as the published one, most of them made up. The processors have the published limits of
pixels: how much vLLM has a step encode follows from the largest video that they allow.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from demo.make_checkpoints import (
    CORPUS,
    SPECIAL_TOKENS,
    preprocessor_config,
    train_tokenizer,
    vision_processor_configs,
    write_checkpoint,
)

QWEN2_5_PIXELS = {"shortest_edge": 3136, "longest_edge": 12_845_056}
QWEN3_PATCH_PX = 16
QWEN3_PIXELS = {"shortest_edge": 4096, "longest_edge": 25_165_824}


@dataclass(frozen=True)
class LargeModel:
    """One published model.

    Attributes:
        repo_id: its repository, and its folder below the folder of models.
        vocab_size: rows of its output layer.
    """

    repo_id: str
    vocab_size: int


QWEN2_5_VL_7B = LargeModel("Qwen/Qwen2.5-VL-7B-Instruct", 152_064)
QWEN3_VL_8B = LargeModel("Qwen/Qwen3-VL-8B-Instruct", 151_936)
QWEN2_5_14B = LargeModel("Qwen/Qwen2.5-14B-Instruct", 152_064)


def write_large_model(model: LargeModel, folder: Path) -> Path:
    """Writes a checkpoint without weights below `folder` and returns its own folder."""
    tokenizer = large_tokenizer(model.vocab_size)
    config, processors = _CONFIGS[model.repo_id](tokenizer, model.vocab_size)
    path = folder / model.repo_id
    write_checkpoint(path, config, tokenizer, None, processors)
    return path


def large_tokenizer(vocab_size: int) -> Tokenizer:
    """Returns the demo's tokenizer, filled up with made-up tokens; special tokens take the last ids."""
    document = json.loads(train_tokenizer(CORPUS.read_text(encoding="utf-8")).to_str())
    vocabulary = document["model"]["vocab"]
    for number in range(len(vocabulary), vocab_size - len(SPECIAL_TOKENS)):
        vocabulary[f"Ġword{number}"] = number
    for at, added in enumerate(document["added_tokens"]):
        added["id"] = vocab_size - len(SPECIAL_TOKENS) + at
    return Tokenizer.from_str(json.dumps(document))


def _text(tokenizer: Tokenizer, vocab_size: int, **sizes: Any) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": vocab_size,
        **sizes,
    }


def _video_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    vocabulary = tokenizer.get_vocab()
    return {name: vocabulary[token] for name, token in names.items()}


def _qwen2_5(tokenizer: Tokenizer, vocab_size: int, **sizes: Any) -> dict[str, Any]:
    return _text(
        tokenizer,
        vocab_size,
        rope_theta=1_000_000.0,
        sliding_window=32_768,
        use_sliding_window=False,
        max_window_layers=sizes["num_hidden_layers"],
        **sizes,
    )


def _qwen2_5_vl_7b(tokenizer: Tokenizer, vocab_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    text = _qwen2_5(
        tokenizer,
        vocab_size,
        hidden_size=3584,
        intermediate_size=18_944,
        num_attention_heads=28,
        num_hidden_layers=28,
        num_key_value_heads=4,
    )
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **text,
        **_video_tokens(tokenizer),
        "vision_token_id": tokenizer.token_to_id("<|vision_pad|>"),
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": 32,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "hidden_size": 1280,
            "in_chans": 3,
            "intermediate_size": 3420,
            "model_type": "qwen2_5_vl",
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
    }
    return config, {
        name: processor | {"size": QWEN2_5_PIXELS} for name, processor in vision_processor_configs().items()
    }


def _qwen3_vl_8b(tokenizer: Tokenizer, vocab_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    text = _text(
        tokenizer,
        vocab_size,
        hidden_size=4096,
        intermediate_size=12_288,
        num_attention_heads=32,
        num_hidden_layers=36,
        num_key_value_heads=8,
        head_dim=128,
        rope_theta=5_000_000.0,
        rope_scaling={"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
    )
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **_video_tokens(tokenizer),
        "tie_word_embeddings": False,
        "text_config": {"model_type": "qwen3_vl_text", **text},
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 27,
            "deepstack_visual_indexes": [8, 16, 24],
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 1152,
            "in_channels": 3,
            "intermediate_size": 4304,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": 4096,
            "patch_size": QWEN3_PATCH_PX,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }
    return config, {
        f"{prefix}preprocessor_config.json": preprocessor_config(kind)
        | {
            "processor_class": "Qwen3VLProcessor",
            f"{kind}_processor_type": name,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "patch_size": QWEN3_PATCH_PX,
            "size": QWEN3_PIXELS,
        }
        for prefix, kind, name in (
            ("", "image", "Qwen2VLImageProcessorFast"),
            ("video_", "video", "Qwen3VLVideoProcessor"),
        )
    }


def _qwen2_5_14b(tokenizer: Tokenizer, vocab_size: int) -> tuple[dict[str, Any], None]:
    text = _qwen2_5(
        tokenizer,
        vocab_size,
        hidden_size=5120,
        intermediate_size=13_824,
        num_attention_heads=40,
        num_hidden_layers=48,
        num_key_value_heads=8,
    )
    return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **text}, None


_CONFIGS: dict[str, Any] = {
    QWEN2_5_VL_7B.repo_id: _qwen2_5_vl_7b,
    QWEN3_VL_8B.repo_id: _qwen3_vl_8b,
    QWEN2_5_14B.repo_id: _qwen2_5_14b,
}


def main() -> None:
    """Writes all checkpoints."""
    parser = argparse.ArgumentParser(description="Checkpoints of the published sizes, without weights.")
    parser.add_argument("folder", type=Path, help="folder that repository ids are relative to")
    given = parser.parse_args()
    for model in (QWEN2_5_VL_7B, QWEN3_VL_8B, QWEN2_5_14B):
        print(write_large_model(model, given.folder))


if __name__ == "__main__":
    main()
