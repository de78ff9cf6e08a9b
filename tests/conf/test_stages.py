"""The parameters that users of NeMo Curator know: names, defaults and flags as they know them."""

import pytest
from pydantic import ValidationError

from conf.fields import Group
from conf.loading import FIELDS
from conf.settings import Settings
from conf.stages import (
    CaptionEnhancementSettings,
    CaptionGenerationSettings,
    CaptionPreparationSettings,
    PreviewSettings,
)

STAGES: dict[type[Group], dict[str, object]] = {
    CaptionPreparationSettings: {
        "model_variant": "qwen",
        "prompt_variant": "default",
        "prompt_text": None,
        "sampling_fps": 2.0,
        "window_size": 256,
        "remainder_threshold": 128,
        "model_does_preprocess": False,
        "preprocess_dtype": "float32",
        "generate_previews": True,
        "verbose": False,
    },
    PreviewSettings: {
        "target_fps": 1.0,
        "target_height": 240,
        "compression_level": 6,
        "quality": 50,
        "num_cpus_per_worker": 4.0,
        "verbose": False,
    },
    CaptionGenerationSettings: {
        "model_dir": "models/qwen",
        "model_variant": "qwen",
        "caption_batch_size": 16,
        "fp8": False,
        "max_output_tokens": 512,
        "model_does_preprocess": False,
        "disable_mmcache": False,
        "generate_stage2_caption": False,
        "stage2_prompt_text": None,
        "verbose": False,
    },
    CaptionEnhancementSettings: {
        "model_dir": "models/qwen",
        "model_variant": "qwen",
        "prompt_variant": "default",
        "prompt_text": None,
        "model_batch_size": 128,
        "fp8": False,
        "max_output_tokens": 512,
        "verbose": False,
    },
}

FLAGS = [
    "--generate-captions",
    "--captioning-algorithm",
    "--captioning-window-size",
    "--captioning-remainder-threshold",
    "--captioning-sampling-fps",
    "--captioning-preprocess-dtype",
    "--captioning-batch-size",
    "--captioning-max-output-tokens",
    "--captioning-prompt-variant",
    "--captioning-prompt-text",
    "--captioning-stage2-caption",
    "--captioning-stage2-prompt-text",
    "--captioning-use-fp8-weights",
    "--captioning-use-vllm-mmcache",
    "--captioning-model-does-preprocess",
    "--enhance-captions",
    "--enhance-captions-algorithm",
    "--enhance-captions-batch-size",
    "--enhance-captions-use-fp8-weights",
    "--enhance-captions-max-output-tokens",
    "--enhance-captioning-prompt-variant",
    "--enhance-captions-prompt-text",
    "--generate-previews",
    "--preview-target-fps",
    "--preview-target-height",
    "--model-dir",
    "--output-path",
    "--verbose",
    "--input-path",
    "--video-dir",
    "--output-clip-path",
    "--windows-per-commit",
    "--model-variant",
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_stage_has_exactly_the_known_parameters_with_the_known_defaults(stage: type[Group]) -> None:
    made = stage().model_dump()
    assert made == STAGES[stage]
    assert {name: type(value) for name, value in made.items()} == {
        name: type(value) for name, value in STAGES[stage].items()
    }


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_stage_refuses_what_it_does_not_know_and_cannot_be_changed_behind_a_config_id(
    stage: type[Group],
) -> None:
    with pytest.raises(ValidationError):
        stage(no_such_parameter=1)
    with pytest.raises(ValidationError, match="frozen"):
        stage().verbose = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_that_scripts_use_is_still_there(flag: str) -> None:
    assert any(flag in field.flags for field in FIELDS)


def test_every_setting_says_in_one_sentence_what_it_is_for() -> None:
    assert len(FIELDS) == len({field.path for field in FIELDS})
    assert not [field.path for field in FIELDS if not field.info.description]


def test_settings_and_their_groups_cannot_be_changed_after_the_checks() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.preview = PreviewSettings()
    with pytest.raises(ValidationError):
        Settings.model_validate({"previews": {}})
