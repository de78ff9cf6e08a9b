"""The parameters of the four stages, with the names, defaults and meaning that NeMo Curator gives them."""

from typing import Literal

from conf.fields import Group, setting

Variant = Literal["qwen", "qwen2.5", "qwen3", "demo"]
Dtype = Literal["float32", "float16", "bfloat16"]


class CaptionPreparationSettings(Group):
    """How a clip is cut into windows, and which prompt its captions answer."""

    model_variant: Variant = setting(
        "qwen",
        "model family that frames and prompt are made for",
        flags=("--captioning-algorithm", "--model-variant"),
    )
    prompt_variant: Literal["default", "av", "av-surveillance"] = setting(
        "default", "which built-in prompt the captions answer", flags=("--captioning-prompt-variant",)
    )
    prompt_text: str | None = setting(
        None,
        "a prompt of your own; overrides the prompt variant",
        flags=("--captioning-prompt-text",),
        min_length=1,
    )
    sampling_fps: float = setting(
        2.0, "frames sampled from each second of video", flags=("--captioning-sampling-fps",), gt=0, le=240
    )
    window_size: int = setting(256, "frames in a full window", flags=("--captioning-window-size",), ge=4)
    remainder_threshold: int = setting(
        128,
        "frames that a clip's remainder needs to be a window of its own",
        flags=("--captioning-remainder-threshold",),
        ge=0,
    )
    model_does_preprocess: bool = setting(
        False,
        "hand full-size frames to the model's own processor",
        flags=("--captioning-model-does-preprocess",),
    )
    preprocess_dtype: Dtype = setting(
        "float32",
        "type in which frames are rescaled and normalized",
        flags=("--captioning-preprocess-dtype",),
    )
    generate_previews: bool = setting(True, "make a preview of every window", flags=("--generate-previews",))
    verbose: bool = setting(False, "log a line for every clip and window", flags=("--verbose",))


class PreviewSettings(Group):
    """How the animated WebP of a window is made."""

    target_fps: float = setting(
        1.0, "frames in each second of a preview", flags=("--preview-target-fps",), gt=0, le=60
    )
    target_height: int = setting(
        240, "height of a preview in pixels", flags=("--preview-target-height",), ge=16, le=4320
    )
    compression_level: int = setting(
        6,
        "effort of the WebP encoder; 0 means lossless",
        flags=("--preview-compression-level",),
        ge=0,
        le=6,
    )
    quality: int = setting(50, "quality of the WebP encoder", flags=("--preview-quality",), ge=0, le=100)
    num_cpus_per_worker: float = setting(
        4.0, "threads of one ffmpeg, rounded up", flags=("--preview-num-cpus-per-worker",), gt=0, le=256
    )
    verbose: bool = setting(False, "log a line for every preview", flags=("--verbose",))


class CaptionGenerationSettings(Group):
    """Which model captions the windows, and how."""

    model_dir: str = setting(
        "models/qwen",
        "folder of the model weights; what is missing is fetched to it",
        flags=("--model-dir",),
        min_length=1,
    )
    model_variant: Variant = setting(
        "qwen", "model family that writes the captions", flags=("--captioning-algorithm", "--model-variant")
    )
    caption_batch_size: int = setting(
        16, "least number of windows in flight in a task", flags=("--captioning-batch-size",), ge=1, le=4096
    )
    fp8: bool = setting(
        False, "8-bit weights, on cards that compute with them", flags=("--captioning-use-fp8-weights",)
    )
    max_output_tokens: int = setting(
        512, "longest caption in tokens", flags=("--captioning-max-output-tokens",), ge=1, le=32_000
    )
    model_does_preprocess: bool = setting(
        False,
        "hand full-size frames to the model's own processor",
        flags=("--captioning-model-does-preprocess",),
    )
    disable_mmcache: bool = setting(
        False,
        "switches vLLM's caches of frames and prefixes off; the flag keeps them on",
        flags=("--captioning-use-vllm-mmcache",),
        negated=True,
    )
    generate_stage2_caption: bool = setting(
        False, "let the model refine its caption in a second pass", flags=("--captioning-stage2-caption",)
    )
    stage2_prompt_text: str | None = setting(
        None,
        "what the second pass is told behind the first prompt; the first caption follows it",
        flags=("--captioning-stage2-prompt-text",),
        min_length=1,
    )
    verbose: bool = setting(False, "log a line for every window", flags=("--verbose",))


class CaptionEnhancementSettings(Group):
    """Which text model enhances the captions, and how."""

    model_dir: str = setting(
        "models/qwen",
        "folder of the model weights; what is missing is fetched to it",
        flags=("--model-dir",),
        min_length=1,
    )
    model_variant: Variant = setting(
        "qwen",
        "model family that enhances the captions",
        flags=("--enhance-captions-algorithm", "--model-variant"),
    )
    prompt_variant: Literal["default", "av-surveillance"] = setting(
        "default",
        "which built-in prompt the enhancement follows",
        flags=("--enhance-captioning-prompt-variant",),
    )
    prompt_text: str | None = setting(
        None,
        "a prompt of your own; overrides the prompt variant",
        flags=("--enhance-captions-prompt-text",),
        min_length=1,
    )
    model_batch_size: int = setting(
        128,
        "least number of captions in flight in a task",
        flags=("--enhance-captions-batch-size",),
        ge=1,
        le=4096,
    )
    fp8: bool = setting(
        False, "8-bit weights, on cards that compute with them", flags=("--enhance-captions-use-fp8-weights",)
    )
    max_output_tokens: int = setting(
        512,
        "longest enhanced caption in tokens",
        flags=("--enhance-captions-max-output-tokens",),
        ge=1,
        le=32_000,
    )
    verbose: bool = setting(False, "log a line for every caption", flags=("--verbose",))
