"""A wrong setting is refused before work starts, in words that tell the user what to change."""

from pathlib import Path
from typing import Any

import pytest

from conf.errors import SettingsError
from conf.loading import load_settings


def refusal(**given: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(**given)
    return str(caught.value)


@pytest.mark.parametrize(
    ("flag", "value", "setting", "allowed"),
    [
        ("--captioning-window-size", "3", "caption_preparation.window_size='3'", "at least 4"),
        ("--captioning-window-size", "a lot", "caption_preparation.window_size='a lot'", "at least 4"),
        ("--captioning-window-size", "5.5", "caption_preparation.window_size='5.5'", "at least 4"),
        ("--captioning-sampling-fps", 0, "caption_preparation.sampling_fps=0", "more than 0 and at most 240"),
        ("--captioning-sampling-fps", "nan", "caption_preparation.sampling_fps='nan'", "at most 240"),
        ("--captioning-remainder-threshold", -1, "caption_preparation.remainder_threshold=-1", "at least 0"),
        ("--preview-compression-level", 7, "preview.compression_level=7", "at least 0 and at most 6"),
        ("--preview-quality", 101, "preview.quality=101", "at least 0 and at most 100"),
        ("--captioning-batch-size", 0, "caption_generation.caption_batch_size=0", "at least 1"),
        ("--top-p", 1.5, "engine.top_p=1.5", "more than 0 and at most 1"),
        ("--windows-per-commit", "0", "lake.windows_per_commit='0'", "at least 1"),
        ("--ingest-mode", "copy", "lake.ingest_mode='copy'", "one of reference, value"),
        ("--captioning-preprocess-dtype", "int8", "preprocess_dtype='int8'", "float32, float16, bfloat16"),
        ("--captioning-prompt-variant", "avx", "prompt_variant='avx'", "one of default, av, av-surveillance"),
        (
            "--enhance-captioning-prompt-variant",
            "av",
            "caption_enhancement.prompt_variant='av'",
            "one of default, av-surveillance",
        ),
        ("--captioning-algorithm", "gpt", "model_variant='gpt'", "one of qwen, qwen2.5, qwen3, demo"),
        ("--captioning-prompt-text", "", "caption_preparation.prompt_text=''", "text"),
        ("--generate-captions", "perhaps", "pipeline.generate_captions='perhaps'", "true/false"),
    ],
)
def test_a_flag_out_of_range_is_refused_with_setting_value_source_and_range(
    flag: str, value: Any, setting: str, allowed: str
) -> None:
    message = refusal(flags={flag: value})
    assert setting in message
    assert f"(from {flag})" in message
    assert allowed in message


def test_a_refusal_names_the_default_so_that_the_user_can_go_back_to_it() -> None:
    assert refusal(flags={"--captioning-window-size": 3}) == (
        "caption_preparation.window_size=3 (from --captioning-window-size) is not allowed: "
        "whole number, at least 4, default 256"
    )


def test_the_variable_or_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    message = refusal(environment={"CAPTIONLAKE_PREVIEW_QUALITY": "200"})
    assert "preview.quality='200' (from CAPTIONLAKE_PREVIEW_QUALITY)" in message
    path = tmp_path / "job.yaml"
    path.write_text("preview:\n  quality: best\n")
    assert f"preview.quality='best' (from {path})" in refusal(config=str(path))


def test_all_mistakes_are_named_at_once() -> None:
    message = refusal(
        flags={"--preview-quality": 101, "--captioning-window-size": 1},
        environment={"CAPTIONLAKE_INGEST_MODE": "copy"},
    )
    lines = message.splitlines()
    assert len(lines) == 3
    for name in ("preview.quality", "caption_preparation.window_size", "lake.ingest_mode"):
        assert any(name in line for line in lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("captoin_preparation:\n  window_size: 9\n", ["'captoin_preparation'", "mean caption_preparation?"]),
        ("preview:\n  qualty: 9\n", ["'preview.qualty'", "did you mean preview.quality?"]),
        ("preview:\n  bitrate_of_the_sound: 9\n", ["'preview.bitrate_of_the_sound'"]),
        ("preview: 9\n", ["preview holds 9"]),
        ("- a\n- b\n", ["holds list"]),
        ("preview: {quality: [\n", ["is not YAML"]),
        ("preview:\n  quality: [1, 2]\n", ["preview.quality=[1, 2]", "at least 0 and at most 100"]),
        ("preview:\n  verbose: 7\n", ["preview.verbose=7", "true/false"]),
        ("caption_generation:\n  caption_batch_size: true\n", ["caption_batch_size=True", "at least 1"]),
        ("lake:\n  input_path: [1]\n", ["lake.input_path", "list of text"]),
    ],
)
def test_a_file_that_says_what_nobody_understands_is_refused(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    message = refusal(config=str(path))
    assert str(path) in message
    for word in words:
        assert word in message


def test_a_missing_or_unreadable_settings_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.yaml: No such file" in refusal(config=str(tmp_path / "nowhere.yaml"))
    assert "Is a directory" in refusal(config=str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "is not YAML" in refusal(config=str(tmp_path / "binary.yaml"))


def test_a_misspelt_variable_is_refused_and_not_passed_over() -> None:
    message = refusal(environment={"CAPTIONLAKE_CAPTIONING_WINDOW_SIZ": "9"})
    assert "CAPTIONLAKE_CAPTIONING_WINDOW_SIZ names no setting" in message
    assert "did you mean CAPTIONLAKE_CAPTIONING_WINDOW_SIZE?" in message


def test_a_switch_in_the_environment_must_be_true_or_false() -> None:
    message = refusal(environment={"CAPTIONLAKE_VERBOSE": "maybe"})
    assert message == "CAPTIONLAKE_VERBOSE='maybe': allowed are true and false"


@pytest.mark.parametrize(
    ("name", "values"), [("model_does_preprocess", (True, False)), ("model_variant", ("qwen3", "qwen"))]
)
def test_frames_prepared_for_another_model_than_the_one_that_reads_them_are_refused(
    name: str, values: tuple[Any, Any]
) -> None:
    base = {"caption_preparation": {name: values[0]}, "caption_generation": {name: values[1]}}
    message = refusal(base=base)
    assert f"caption_preparation.{name}={values[0]!r}" in message
    assert f"caption_generation.{name}={values[1]!r}" in message
