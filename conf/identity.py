"""Config identities: which settings a row was made with, as one id.

An id is the SHA-256 of a canonical JSON of those settings that change the output and differ from
their defaults; so a new setting with a default changes no id, and a second run with the same
settings finds its work done.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from conf.fields import Group
from conf.prompts import caption_prompt, enhancement_prompt, stage2_prompt
from conf.settings import Settings

FORMAT = 1
"""Version of the canonical JSON; a new one re-does all work, so it changes only for a mistake."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which weights answered: repository id, revision, and the precision that took effect."""

    model_id: str
    revision: str
    fp8: bool = False


@dataclass(frozen=True)
class ConfigIdentity:
    """One row of the table `configs`.

    Attributes:
        kind: the table whose rows carry the id, e.g. `captions`.
        canonical: the canonical JSON.
    """

    kind: str
    canonical: str

    @property
    def config_id(self) -> str:
        """64 hexadecimal digits."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()


def prep_config(settings: Settings) -> ConfigIdentity:
    """Identity of the windows: the window rule, the sampling, and what counts as a frame."""
    names = ("sampling_fps", "window_size", "remainder_threshold")
    rule = _changed(settings.caption_preparation, names)
    return _identity("windows", rule | _changed(settings.media, ("check_frames",)))


def preview_config(settings: Settings) -> ConfigIdentity:
    """Identity of the previews."""
    names = ("target_fps", "target_height", "compression_level", "quality")
    return _identity("previews", _changed(settings.preview, names))


def caption_config(settings: Settings, model: ModelIdentity) -> ConfigIdentity:
    """Identity of the captions: model, prompts, preprocessing and generation."""
    stage2 = stage2_prompt(settings)
    return _identity(
        "captions",
        _model(model)
        | {"prompt": caption_prompt(settings)}
        | ({"stage2_prompt": stage2} if stage2 else {})
        | _changed(settings.caption_preparation, ("model_does_preprocess", "preprocess_dtype"))
        | _changed(settings.caption_generation, ("max_output_tokens",))
        | _generation(settings),
    )


def enhance_config(settings: Settings, model: ModelIdentity) -> ConfigIdentity:
    """Identity of the enhancements: model, prompt and generation."""
    return _identity(
        "enhancements",
        _model(model)
        | {"prompt": enhancement_prompt(settings)}
        | _changed(settings.caption_enhancement, ("max_output_tokens",))
        | _generation(settings),
    )


def _generation(settings: Settings) -> dict[str, Any]:
    names = ("dtype", "temperature", "top_p", "repetition_penalty", "max_model_len")
    # However they were written, and in whatever order.
    given = settings.engine.parsed_vllm_arguments
    return _changed(settings.engine, names) | ({"vllm_arguments": given} if given else {})


def _model(model: ModelIdentity) -> dict[str, Any]:
    return {"model": model.model_id, "revision": model.revision} | ({"fp8": True} if model.fp8 else {})


def _changed(group: Group, names: tuple[str, ...]) -> dict[str, Any]:
    """The settings among `names` that differ from their defaults."""
    defaults = {name: field.default for name, field in type(group).model_fields.items()}
    return {name: getattr(group, name) for name in names if getattr(group, name) != defaults[name]}


def _identity(kind: str, settings: dict[str, Any]) -> ConfigIdentity:
    document = {"format": FORMAT, "kind": kind, "settings": settings}
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return ConfigIdentity(kind, canonical)
