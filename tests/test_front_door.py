"""The public names: a script written for NeMo Curator finds its stages, and an import costs nothing."""

import subprocess
import sys

import pytest

import captionlake
from captionlake import (
    CaptionEnhancementStage,
    CaptionGenerationStage,
    CaptionPreparationStage,
    Pipeline,
    PreviewStage,
)
from conf.errors import SettingsError
from conf.settings import Settings
from jobs.stages import Stage
from jobs.windows import window_rule

STAGES: list[type[Stage]] = [
    CaptionPreparationStage,
    PreviewStage,
    CaptionGenerationStage,
    CaptionEnhancementStage,
]


def test_importing_the_front_door_imports_nothing_heavy_and_its_names_are_listed() -> None:
    program = (
        "import captionlake, sys; print([m for m in ('pyspark', 'pandas', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {*captionlake.__all__} <= {*dir(captionlake)}
    with pytest.raises(AttributeError, match="NoSuchStage"):
        captionlake.NoSuchStage  # noqa: B018


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_the_parameters_and_defaults_of_its_settings_and_no_others(stage: type[Stage]) -> None:
    settings = Settings.model_fields[stage.group].annotation
    assert settings is not None
    assert stage.model_fields.keys() == settings.model_fields.keys()
    assert stage().model_dump() == settings().model_dump()


def test_a_wrong_parameter_is_refused_where_it_is_given_and_a_stage_never_changes() -> None:
    with pytest.raises(SettingsError, match=r"window_size=3 \(from CaptionPreparationStage\).*at least 4"):
        CaptionPreparationStage(window_size=3)
    with pytest.raises(SettingsError, match=r"did you mean preview\.target_fps"):
        PreviewStage(target_fp=1)
    with pytest.raises(ValueError, match="frozen"):
        CaptionGenerationStage().fp8 = True  # type: ignore[misc]


def test_the_original_s_quickstart_says_here_what_it_says_there() -> None:
    """Every parameter that its page gives, under its name; only imports and run(...) differ."""
    pipe = Pipeline(name="captions_preview")
    pipe.add_stage(
        CaptionPreparationStage(
            model_variant="qwen",
            prompt_variant="default",
            prompt_text=None,
            sampling_fps=2.0,
            window_size=256,
            remainder_threshold=128,
            preprocess_dtype="float16",
            model_does_preprocess=False,
            generate_previews=True,
            verbose=True,
        )
    )
    pipe.add_stage(PreviewStage(target_fps=1.0, target_height=240, verbose=True))
    pipe.add_stage(
        CaptionGenerationStage(
            model_dir="/models",
            model_variant="qwen",
            caption_batch_size=8,
            fp8=False,
            max_output_tokens=512,
            model_does_preprocess=False,
            generate_stage2_caption=False,
            stage2_prompt_text=None,
            disable_mmcache=True,
        )
    )
    settings = pipe.settings(clips=["a.mp4", "b"], output_path="lake")
    assert settings.lake.input_path == ("a.mp4", "b")
    assert settings.lake.output_path == "lake"
    assert settings.wants_previews
    assert settings.pipeline.generate_captions
    assert not settings.pipeline.enhance_captions
    assert settings.caption_preparation.preprocess_dtype == "float16"
    assert settings.caption_generation.model_dir == "/models"
    assert settings.caption_generation.caption_batch_size == 8
    assert settings.caption_generation.disable_mmcache
    assert settings.preview.verbose
    assert window_rule(settings).window_size == 256
    assert pipe.describe().splitlines()[0] == "captions_preview"
    assert "target_height=240" in pipe.describe()


def test_code_wins_over_the_file_and_the_file_over_the_defaults() -> None:
    pipe = Pipeline(stages=[CaptionPreparationStage(window_size=64)])
    config = {"caption_preparation": {"window_size": 32, "sampling_fps": 1.0}, "media": {"max_decode_s": 5}}
    settings = pipe.settings(output_path="lake", config=config)
    assert settings.caption_preparation.window_size == 64
    assert settings.caption_preparation.sampling_fps == 1.0
    assert settings.media.max_decode_s == 5
    with pytest.raises(SettingsError, match="no_such"):
        pipe.settings(output_path="lake", config={"no_such": {}})


def test_without_a_preview_stage_there_are_no_previews() -> None:
    pipe = Pipeline(stages=[CaptionPreparationStage(generate_previews=True)])
    assert not pipe.settings(output_path="lake").wants_previews
    pipe.add_stage(PreviewStage())
    assert pipe.settings(output_path="lake").wants_previews


def test_stages_that_make_no_pipeline_are_refused_with_what_is_missing() -> None:
    with pytest.raises(SettingsError, match="add CaptionPreparationStage before it"):
        Pipeline().add_stage(PreviewStage())
    with pytest.raises(SettingsError, match="add CaptionGenerationStage before it"):
        Pipeline(stages=[CaptionPreparationStage(), CaptionEnhancementStage()])
    with pytest.raises(SettingsError, match="has one already"):
        Pipeline(stages=[CaptionPreparationStage(), CaptionPreparationStage()])
    with pytest.raises(SettingsError, match="takes the stages of captionlake"):
        Pipeline().add_stage("caption")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="'empty' has no stage"):
        Pipeline(name="empty").settings(output_path="lake")
    mismatched = Pipeline(stages=[CaptionPreparationStage(), CaptionGenerationStage(model_variant="qwen3")])
    with pytest.raises(SettingsError, match="must agree"):
        mismatched.settings(output_path="lake")
