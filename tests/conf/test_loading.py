"""Where a setting's value comes from: a user must be able to tell which of four sources wins."""

from pathlib import Path

import pytest

from conf.loading import FIELDS, env_name, load_settings
from conf.settings import Settings


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A YAML file that sets one value of each kind."""
    path = tmp_path / "job.yaml"
    path.write_text(
        "lake:\n  input_path: [from/yaml, more]\n"
        "caption_preparation:\n  window_size: 100\n  generate_previews: true\n"
        "caption_generation:\n  disable_mmcache: false\n  model_dir: yaml/models\n"
        "engine:\n  temperature: 0.5\n"
    )
    return str(path)


def test_without_any_source_the_script_defaults_hold_and_everything_else_is_the_stages_default() -> None:
    settings = load_settings()
    assert settings.caption_generation.disable_mmcache is True
    assert settings.caption_preparation.generate_previews is False
    assert settings.pipeline.generate_captions is False
    script = {"caption_preparation": {"generate_previews": False}, "caption_generation": {}}
    script["caption_generation"] = {"disable_mmcache": True}
    assert settings == Settings.model_validate(script)


def test_each_source_beats_the_ones_below_it(config: str) -> None:
    environment = {"CAPTIONLAKE_CAPTIONING_WINDOW_SIZE": "200"}
    flags = {"--captioning-window-size": "300"}
    sizes = [
        load_settings(**given).caption_preparation.window_size
        for given in (
            {},
            {"base": {"caption_preparation": {"window_size": 50}}},
            {"base": {"caption_preparation": {"window_size": 50}}, "config": config},
            {"config": config, "environment": environment},
            {"config": config, "environment": environment, "flags": flags},
        )
    ]
    assert sizes == [256, 50, 100, 200, 300]


def test_a_file_is_read_in_full_and_what_it_leaves_out_keeps_its_default(config: str) -> None:
    settings = load_settings(config=config)
    assert settings.lake.input_path == ("from/yaml", "more")
    assert settings.caption_preparation.generate_previews is True
    assert settings.caption_generation.disable_mmcache is False
    assert settings.engine.temperature == 0.5
    assert settings.caption_preparation.sampling_fps == 2.0


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load_settings(config=str(tmp_path / "empty.yaml")) == load_settings()


def test_a_flag_for_one_stage_beats_the_flag_for_all_stages() -> None:
    settings = load_settings(flags={"--model-variant": "demo", "--enhance-captions-algorithm": "qwen3"})
    assert settings.caption_generation.model_variant == "demo"
    assert settings.caption_preparation.model_variant == "demo"
    assert settings.caption_enhancement.model_variant == "qwen3"
    settings = load_settings(flags={"--captioning-algorithm": "qwen3", "--model-variant": "demo"})
    assert settings.caption_preparation.model_variant == settings.caption_generation.model_variant == "qwen3"
    assert settings.caption_enhancement.model_variant == "demo"


def test_a_general_flag_beats_a_specific_variable_because_the_command_line_is_nearer() -> None:
    environment = {"CAPTIONLAKE_CAPTIONING_ALGORITHM": "qwen3"}
    assert load_settings(environment=environment).caption_generation.model_variant == "qwen3"
    settings = load_settings(environment=environment, flags={"--model-variant": "demo"})
    assert settings.caption_generation.model_variant == "demo"


@pytest.mark.parametrize(("flag", "disabled"), [(True, False), (False, True)])
def test_the_cache_flag_switches_the_cache_on_although_the_setting_says_disable(
    flag: bool, disabled: bool
) -> None:
    assert load_settings(
        flags={"--captioning-use-vllm-mmcache": flag}
    ).caption_generation.disable_mmcache is (disabled)
    environment = {"CAPTIONLAKE_CAPTIONING_USE_VLLM_MMCACHE": str(flag).lower()}
    assert load_settings(environment=environment).caption_generation.disable_mmcache is disabled


@pytest.mark.parametrize("flag", ["--input-path", "--video-dir"])
def test_both_names_of_the_input_take_several_places(flag: str) -> None:
    assert load_settings(flags={flag: ["a", "b c"]}).lake.input_path == ("a", "b c")
    assert load_settings(environment={env_name(flag): "a,b c"}).lake.input_path == ("a", "b c")


@pytest.mark.parametrize("flag", ["--output-path", "--output-clip-path"])
def test_both_names_of_the_output_name_the_lake(flag: str) -> None:
    assert load_settings(flags={flag: "my/lake"}).lake.output_path == "my/lake"


def test_one_verbose_flag_makes_every_stage_talk() -> None:
    settings = load_settings(flags={"--verbose": True})
    stages = (
        settings.caption_preparation,
        settings.preview,
        settings.caption_generation,
        settings.caption_enhancement,
    )
    assert all(stage.verbose for stage in stages)


def test_one_model_dir_serves_both_models() -> None:
    settings = load_settings(flags={"--model-dir": "weights"})
    assert settings.caption_generation.model_dir == settings.caption_enhancement.model_dir == "weights"


@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), ("yes", True), ("0", False)])
def test_switches_are_read_from_the_environment_as_people_write_them(text: str, value: bool) -> None:
    environment = {"CAPTIONLAKE_GENERATE_CAPTIONS": text}
    assert load_settings(environment=environment).pipeline.generate_captions is value


def test_variables_of_other_programs_and_program_paths_are_left_alone() -> None:
    environment = {"PATH": "/bin", "CAPTIONLAKE_FFMPEG": "/x", "CAPTIONLAKE_ENGINE_PYTHON": "/y"}
    environment["CAPTIONLAKE_CONFIG"] = "job.yaml"
    assert load_settings(environment=environment) == load_settings()


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.path)
def test_every_setting_can_be_given_by_flag_and_environment(field) -> None:
    default = field.info.default
    default = "given" if default is None and "str" in str(field.info.annotation) else default
    value = 7 if default is None else default
    shown = not value if field.negated else value
    assert field.flags, f"{field.path} has no flag"
    for flag in field.flags:
        text = ",".join(shown) if isinstance(shown, tuple) else str(shown)
        for settings in (
            load_settings(flags={flag: shown}),
            load_settings(environment={env_name(flag): text}),
        ):
            assert getattr(getattr(settings, field.group), field.name) == value


def test_the_settings_of_an_earlier_run_load_as_they_were(config: str) -> None:
    before = load_settings(config=config, flags={"--captioning-prompt-text": "Was ist zu sehen?"})
    again = load_settings(base=before.model_dump(mode="json"))
    assert again == before


def test_the_overlay_for_one_machine_loads() -> None:
    settings = load_settings(config=str(Path(__file__).parents[2] / "conf" / "local.yaml"))
    assert settings.spark.master == "local[*]"
    assert settings.engine.dtype == "float32"
