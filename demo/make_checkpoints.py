"""The demo's two models: their architecture, tokenizer and files; and random checkpoints of them.

    python -m demo.make_checkpoints MODEL_DIR [--seed 0]

makes `MODEL_DIR/captionlake/demo-vl` (Qwen2.5-VL with processor, tokenizer and chat template) and
`MODEL_DIR/captionlake/demo-text` (Qwen2.5) with seeded noise as weights: what they say means nothing, and
everything around the words (frames, positions, tokens, finish reasons) is as with the large models. The
trained ones are in `demo/checkpoints`, made by `python -m demo.training`. The files have the layout of the
published Qwen checkpoints, which transformers 4.57 and 5 both load.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from demo.stories import caption_of, description_of, draw_story

CORPUS = Path(__file__).resolve().parent / "corpus.txt"
NUM_STORIES = 2_000
VISION_ID = "captionlake/demo-vl"
TEXT_ID = "captionlake/demo-text"

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
LEARNED_TOKENS = 888
VOCAB_SIZE = LEARNED_TOKENS + len(SPECIAL_TOKENS)
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

HIDDEN = 128
HEAD_SIZE = 64
PATCH_PX = 14
MERGE = 2
MIN_PIXELS = 16 * (PATCH_PX * MERGE) ** 2
MAX_PIXELS = 64 * (PATCH_PX * MERGE) ** 2
# A row of the output layer this much longer than the others wins a step now and then, so that a
# random model ends its captions at different lengths instead of always at the limit.
END_OF_TURN_SCALE = 1.6
# An answer starts after a newline; this much of a newline's embedding is taken out of that row, so
# that no answer ends before it has begun.
EAGERNESS = 0.1


@dataclass(frozen=True)
class Architecture:
    """What the random and the trained models differ in.

    Attributes:
        num_layers: of each tower.
        intermediate_size: inner width of the language model's layers.
        rope_theta: slowest wavelength of the language model's positions.
    """

    num_layers: int
    intermediate_size: int
    rope_theta: float


RANDOM = Architecture(num_layers=2, intermediate_size=2 * HIDDEN, rope_theta=1_000_000.0)
# Rows and columns of a video turn with the slower frequencies, which must still tell neighbours apart in
# pictures of a dozen tokens.
TRAINED_VISION = Architecture(num_layers=4, intermediate_size=3 * HIDDEN, rope_theta=100.0)
TRAINED_TEXT = Architecture(num_layers=4, intermediate_size=3 * HIDDEN, rope_theta=10_000.0)

CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'video' %}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif part.type == 'image' %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}
{{- part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def train_tokenizer(corpus: str) -> Tokenizer:
    """Returns a byte-level BPE tokenizer of `VOCAB_SIZE` tokens; special tokens take the last ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.splitlines(), trainer)
    if tokenizer.get_vocab_size() != LEARNED_TOKENS:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} tokens instead of {LEARNED_TOKENS}")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def token_id(token: str) -> int:
    """Returns the id of one of the special tokens."""
    return LEARNED_TOKENS + SPECIAL_TOKENS.index(token)


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns `tokenizer_config.json` in the layout of the published checkpoints."""
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "unk_token": None,
    }


def text_config(architecture: Architecture) -> dict[str, Any]:
    """Returns the settings of the language model that both checkpoints share."""
    return {
        "attention_dropout": 0.0,
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": architecture.intermediate_size,
        "max_position_embeddings": 32768,
        "max_window_layers": architecture.num_layers,
        "num_attention_heads": HIDDEN // HEAD_SIZE,
        "num_hidden_layers": architecture.num_layers,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_theta": architecture.rope_theta,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB_SIZE,
    }


def vision_config(architecture: Architecture = RANDOM) -> dict[str, Any]:
    """Returns the whole `config.json` of the vision-language model."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **text_config(architecture),
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "vision_token_id": token_id("<|vision_pad|>"),
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vision_config": {
            "depth": architecture.num_layers,
            "fullatt_block_indexes": list(range(1, architecture.num_layers, 2)),
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "in_chans": 3,
            "intermediate_size": 2 * HIDDEN,
            "model_type": "qwen2_5_vl",
            "num_heads": HIDDEN // HEAD_SIZE,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH_PX,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
    }


def qwen2_config(architecture: Architecture = RANDOM) -> dict[str, Any]:
    """Returns the whole `config.json` of the text model."""
    return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **text_config(architecture)}


def vision_processor_configs() -> dict[str, dict[str, Any]]:
    """Returns the processor's files of the vision-language model, by name."""
    return {
        "preprocessor_config.json": preprocessor_config("image"),
        "video_preprocessor_config.json": preprocessor_config("video"),
    }


def preprocessor_config(kind: str) -> dict[str, Any]:
    """Returns the settings of the processor of `kind` "image" or "video"."""
    return {
        f"{kind}_processor_type": "Qwen2VLImageProcessor" if kind == "image" else "Qwen2VLVideoProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "merge_size": MERGE,
        "patch_size": PATCH_PX,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        "temporal_patch_size": 2,
    }


def _published_name(name: str) -> str:
    """Returns the name that the published checkpoints give to a weight of today's model classes."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def _weight_shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen2_5_VLForConditionalGeneration

    settings = AutoConfig.for_model(**config)
    with torch.device("meta"):
        if config["model_type"] == "qwen2_5_vl":
            model: Any = Qwen2_5_VLForConditionalGeneration(settings)
        else:
            model = AutoModelForCausalLM.from_config(settings)
    return {_published_name(name): tensor.shape for name, tensor in model.state_dict().items()}


def random_weights(
    config: dict[str, Any], *, spoken: list[int], newline_id: int, seed: int
) -> dict[str, torch.Tensor]:
    """Returns seeded bfloat16 weights for `config`, by their published names.

    Matrices keep the variance of what flows through them. Output rows of tokens that are not
    `spoken` are zero, so that the noise that comes out is made of printable words.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(_weight_shapes(config).items()):
        if name.endswith("bias"):
            tensor = torch.zeros(shape)
        elif len(shape) == 1:
            tensor = torch.ones(shape)
        else:
            fan_in = shape[1:].numel()
            spread = 1.0 if "embed_tokens" in name else fan_in**-0.5
            tensor = torch.randn(shape, generator=generator) * spread
        weights[name] = tensor
    head = weights["lm_head.weight"]
    silent = torch.ones(head.shape[0], dtype=torch.bool)
    silent[spoken] = False
    head[silent] = 0.0
    end_row = head[config["eos_token_id"]] * END_OF_TURN_SCALE
    opening = weights["model.embed_tokens.weight"][newline_id]
    head[config["eos_token_id"]] = end_row - (end_row @ opening / opening.norm() ** 2 + EAGERNESS) * opening
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}


def spoken_tokens(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of tokens of printable ASCII, and of the end of a turn."""
    ids = [i for i in range(LEARNED_TOKENS) if _is_printable(tokenizer.decode([i]))]
    return [*ids, token_id("<|im_end|>")]


def _is_printable(text: str) -> bool:
    return text.isascii() and text.isprintable() and text.strip() != ""


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    tokenizer: Tokenizer,
    weights: dict[str, torch.Tensor] | None,
    processors: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Writes a checkpoint.

    Args:
        folder: where to; made when missing.
        config: the content of `config.json`.
        tokenizer: the tokenizer.
        weights: by their published names; None writes none, for engines that make up their own.
        processors: contents of the processor's files by name; None for a text model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer))
    _write_json(folder / "config.json", config)
    stops = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": stops[1], "eos_token_id": stops, "pad_token_id": stops[1]},
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    for name, content in (processors or {}).items():
        _write_json(folder / name, content)
    if weights is not None:
        save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def train_demo_tokenizer() -> Tokenizer:
    """Returns the tokenizer of the trained models: each word of their captions is one token."""
    rng = np.random.default_rng(0)
    stories = [draw_story(rng) for _ in range(NUM_STORIES)]
    told = [text for story in stories for text in (caption_of(story), description_of(story))]
    return train_tokenizer(CORPUS.read_text(encoding="utf-8") + "\n".join(told))


def make_checkpoints(model_dir: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Writes both checkpoints below `model_dir`.

    Args:
        model_dir: folder that repository ids are relative to; made when missing.
        seed: of the weights; the same seed gives the same bytes.

    Returns:
        The folders of the vision-language model and of the text model.
    """
    tokenizer = train_tokenizer(CORPUS.read_text(encoding="utf-8"))
    spoken = spoken_tokens(tokenizer)
    newline = tokenizer.encode("\n").ids[0]

    def weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
        return random_weights(config, spoken=spoken, newline_id=newline, seed=seed)

    vision_folder, text_folder = model_dir / VISION_ID, model_dir / TEXT_ID
    vision, text = vision_config(), qwen2_config()
    write_checkpoint(vision_folder, vision, tokenizer, weights(vision, seed), vision_processor_configs())
    write_checkpoint(text_folder, text, tokenizer, weights(text, seed + 1))
    return vision_folder, text_folder


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model_dir", type=Path, help="folder that repository ids are relative to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    arguments = parser.parse_args()
    for folder in make_checkpoints(arguments.model_dir, seed=arguments.seed):
        print(folder)


if __name__ == "__main__":
    main()
