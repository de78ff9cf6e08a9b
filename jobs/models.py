"""Settings of a job turned into settings of the engine."""

import os
from pathlib import Path
from typing import Any

from conf.engine import EngineSettings, RenderSettings
from conf.errors import SettingsError
from conf.identity import ModelIdentity
from conf.settings import Settings
from conf.variants import model_variant
from jobs.weights import hub_weights, model_identity, model_path
from udfs.engine.requests import Generation


def caption_model(settings: Settings) -> ModelIdentity:
    """The identity of the model that captions; SettingsError when it has no weights."""
    generation = settings.caption_generation
    variant = model_variant(generation.model_variant)
    return model_identity(
        generation.model_dir,
        variant.caption_model_id,
        variant.caption_revision,
        fp8=generation.fp8,
        made_up=_makes_weights_up(settings),
    )


def text_model(settings: Settings) -> ModelIdentity:
    """The identity of the model that enhances; SettingsError when it has no weights."""
    enhancement = settings.caption_enhancement
    variant = model_variant(enhancement.model_variant)
    return model_identity(
        enhancement.model_dir,
        variant.text_model_id,
        variant.text_revision,
        fp8=enhancement.fp8,
        made_up=_makes_weights_up(settings),
    )


def caption_engine(settings: Settings) -> EngineSettings:
    """The engine that captions."""
    generation, preparation = settings.caption_generation, settings.caption_preparation
    variant = model_variant(generation.model_variant)
    render = RenderSettings.of_variant(
        variant,
        model_does_preprocess=generation.model_does_preprocess,
        preprocess_dtype=preparation.preprocess_dtype,
        record_dir=_record_dir(settings, "captions"),
    )
    return EngineSettings(
        model_path=str(model_path(generation.model_dir, variant.caption_model_id)),
        kind="caption",
        fp8=generation.fp8,
        disable_mmcache=generation.disable_mmcache,
        weights=hub_weights(
            generation.model_dir,
            variant.caption_model_id,
            variant.caption_revision,
            made_up=_makes_weights_up(settings),
        ),
        render=render,
        **_tuning(settings),
    )


def text_engine(settings: Settings) -> EngineSettings:
    """The engine that enhances."""
    enhancement = settings.caption_enhancement
    variant = model_variant(enhancement.model_variant)
    return EngineSettings(
        model_path=str(model_path(enhancement.model_dir, variant.text_model_id)),
        kind="text",
        fp8=enhancement.fp8,
        weights=hub_weights(
            enhancement.model_dir,
            variant.text_model_id,
            variant.text_revision,
            made_up=_makes_weights_up(settings),
        ),
        render=RenderSettings(record_dir=_record_dir(settings, "enhancements")),
        **_tuning(settings),
    )


def answering(settings: Settings, *, max_output_tokens: int) -> Generation:
    """How a model answers."""
    engine = settings.engine
    return Generation(
        temperature=engine.temperature,
        top_p=engine.top_p,
        repetition_penalty=engine.repetition_penalty,
        max_output_tokens=max_output_tokens,
    )


def _tuning(settings: Settings) -> dict[str, Any]:
    engine = settings.engine
    python = os.environ.get("CAPTIONLAKE_ENGINE_PYTHON") or None
    if python and not os.access(python, os.X_OK):
        raise SettingsError(f"CAPTIONLAKE_ENGINE_PYTHON={python!r} is no program that can be run")
    return {
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
        "max_in_flight": engine.max_in_flight,
        "hang_timeout_s": engine.hang_timeout_s,
        "python": python,
        "vllm_arguments": engine.parsed_vllm_arguments,
    }


def _makes_weights_up(settings: Settings) -> bool:
    """Whether vLLM is told to make weights up instead of loading them."""
    return settings.engine.parsed_vllm_arguments.get("load_format") == "dummy"


def _record_dir(settings: Settings, table: str) -> str | None:
    """The folder of a stage's records: both stages ask for the same windows."""
    return str(Path(settings.engine.record_dir) / table) if settings.engine.record_dir else None
