"""Every setting of a job, in groups; the command line, YAML files, docs and checks are made from it."""

import json
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from conf.engine import vllm_argument
from conf.fields import Group, setting
from conf.stages import (
    CaptionEnhancementSettings,
    CaptionGenerationSettings,
    CaptionPreparationSettings,
    Dtype,
    PreviewSettings,
)

AGREEING = ("model_does_preprocess", "model_variant")
"""Parameters in which the preparation and the generation of captions must agree."""


class LakeSettings(Group):
    """Where rows come from and where they go."""

    input_path: tuple[str, ...] = setting(
        (), "files, folders, globs or URIs of clips (repeatable)", flags=("--input-path", "--video-dir")
    )
    from_curator: str | None = setting(
        None,
        "a folder that NeMo Curator wrote: its clips, with their ids and spans",
        flags=("--from-curator",),
        min_length=1,
    )
    output_path: str | None = setting(
        None,
        "the lake: a folder, or catalog.schema",
        flags=("--output-path", "--output-clip-path"),
        min_length=1,
    )
    ingest_mode: Literal["reference", "value"] = setting(
        "reference", "store where a clip is, or its bytes", flags=("--ingest-mode",)
    )
    windows_per_commit: int | None = setting(
        None,
        "most windows of one commit; 1000 for each GPU when absent",
        flags=("--windows-per-commit",),
        ge=1,
    )


class PipelineSettings(Group):
    """Which optional steps `run` takes; previews are switched by `caption_preparation.generate_previews`."""

    generate_captions: bool = setting(False, "caption every window", flags=("--generate-captions",))
    enhance_captions: bool = setting(
        False, "rewrite captions with the text model", flags=("--enhance-captions",)
    )
    keep_window_mp4: bool = setting(
        False,
        "store every window as an mp4 of its own, in the table window_media",
        flags=("--keep-window-mp4",),
    )


class EngineTuning(Group):
    """How the model runs and answers, for captions and for enhancement."""

    dtype: Dtype = setting("bfloat16", "type in which the model computes", flags=("--dtype",))
    temperature: float = setting(
        0.1, "sampling temperature; 0 is greedy", flags=("--temperature",), ge=0, le=2
    )
    top_p: float = setting(0.001, "nucleus of the sampling", flags=("--top-p",), gt=0, le=1)
    repetition_penalty: float = setting(
        1.05, "penalty on words already said; 1 is none", flags=("--repetition-penalty",), gt=0, le=2
    )
    max_model_len: int = setting(
        32_768,
        "longest prompt and answer together in tokens",
        flags=("--max-model-len",),
        ge=256,
        le=1_048_576,
    )
    max_in_flight: int = setting(
        128, "most requests in flight on one GPU", flags=("--max-in-flight",), ge=1, le=4096
    )
    hang_timeout_s: float = setting(
        300.0,
        "seconds without a token after which the engine is restarted",
        flags=("--hang-timeout-s",),
        ge=10,
    )
    record_dir: str | None = setting(
        None,
        "folder for a record of every request as the model got it",
        flags=("--record-dir",),
        min_length=1,
    )
    vllm_arguments: tuple[str, ...] = setting(
        (),
        "arguments of vLLM's engine, each as NAME=VALUE (repeatable); they win over those chosen for you",
        flags=("--vllm-argument",),
    )

    @field_validator("vllm_arguments")
    @classmethod
    def _are_arguments(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        names = [vllm_argument(text)[0] for text in arguments]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice} is given twice")
        return arguments

    @property
    def parsed_vllm_arguments(self) -> dict[str, Any]:
        """The arguments of vLLM's engine by name."""
        return dict(map(vllm_argument, self.vllm_arguments))


class MediaLimits(Group):
    """What a clip may cost, so that a hostile file costs only its row, and how closely it is looked at."""

    max_decode_s: float = setting(
        600.0, "most seconds spent on decoding one clip", flags=("--max-decode-s",), gt=0
    )
    max_frame_pixels: int = setting(
        8192 * 8192, "largest frame that is decoded, in pixels", flags=("--max-frame-pixels",), ge=64
    )
    check_frames: bool = setting(
        False,
        "cut windows after decoding every frame, so that damage inside frames shows in their status; "
        "without, clips of H.264, HEVC, VP8, VP9 and AV1 are cut by their packets, and such damage shows "
        "when a frame is used",
        flags=("--check-frames",),
    )


class ExportSettings(Group):
    """How a lake is written as files, and where to."""

    layout: Literal["curator"] = setting(
        "curator", "folders and names as NeMo Curator writes them", flags=("--layout",)
    )
    path: str | None = setting(
        None, "folder or URI that gets the files", flags=("--export-path",), min_length=1
    )
    clips: bool = setting(False, "write the clips, too", flags=("--export-clips",))


class SparkSettings(Group):
    """Only for a session that Captionlake starts itself; a session that is there is used as it is."""

    master: str | None = setting(
        None, "Spark master; local[*] where nobody named one", flags=("--master",), min_length=1
    )
    driver_memory: str = setting("2g", "memory of the driver's JVM", flags=("--driver-memory",), min_length=2)
    properties: tuple[str, ...] = setting(
        (),
        "more properties, each as spark.NAME=VALUE (repeatable); those of spark-submit win",
        flags=("--spark-property",),
    )

    @field_validator("properties")
    @classmethod
    def _are_properties(cls, properties: tuple[str, ...]) -> tuple[str, ...]:
        for text in properties:
            if not text.startswith("spark.") or "=" not in text:
                raise ValueError(f"{text!r} is not spark.NAME=VALUE")
        return properties


class Settings(Group):
    """All settings of a job."""

    lake: LakeSettings = LakeSettings()
    pipeline: PipelineSettings = PipelineSettings()
    caption_preparation: CaptionPreparationSettings = CaptionPreparationSettings()
    preview: PreviewSettings = PreviewSettings()
    caption_generation: CaptionGenerationSettings = CaptionGenerationSettings()
    caption_enhancement: CaptionEnhancementSettings = CaptionEnhancementSettings()
    engine: EngineTuning = EngineTuning()
    media: MediaLimits = MediaLimits()
    export: ExportSettings = ExportSettings()
    spark: SparkSettings = SparkSettings()

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        preparation, generation = self.caption_preparation, self.caption_generation
        for name in AGREEING:
            ours, theirs = getattr(preparation, name), getattr(generation, name)
            if ours != theirs:
                raise ValueError(
                    f"caption_preparation.{name}={ours!r} and caption_generation.{name}={theirs!r} must "
                    "agree: frames are prepared for the model that reads them"
                )
        return self

    @property
    def wants_previews(self) -> bool:
        """True when the pipeline makes previews."""
        return self.caption_preparation.generate_previews

    def to_json(self) -> str:
        """The settings as JSON with sorted keys, as the table `runs` keeps them."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


# What the pipeline's script means where neither a file, the environment nor a flag says anything:
# a step runs only when it is asked for, and vLLM's caches are off.
SCRIPT_DEFAULTS: dict[str, Any] = {
    "caption_preparation.generate_previews": False,
    "caption_generation.disable_mmcache": True,
}
