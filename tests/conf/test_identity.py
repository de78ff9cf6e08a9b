"""Config ids: what counts as the same work, for ever."""

from collections.abc import Callable
from typing import Any

import pytest

from conf.identity import (
    ConfigIdentity,
    ModelIdentity,
    caption_config,
    enhance_config,
    prep_config,
    preview_config,
)
from conf.loading import FIELDS, load_settings
from conf.settings import Settings

MODEL = ModelIdentity("Qwen/Qwen2.5-VL-7B-Instruct", "a1b2c3")
PROMPTS = {
    "--captioning-prompt-text": "Describe the clip.",
    "--enhance-captions-prompt-text": "Make it better.",
}

Identity = Callable[[Settings], ConfigIdentity]

IDENTITIES: dict[str, Identity] = {
    "windows": prep_config,
    "previews": preview_config,
    "captions": lambda settings: caption_config(settings, MODEL),
    "enhancements": lambda settings: enhance_config(settings, MODEL),
}

# A change of one of these would caption every lake in the world again.
GOLDEN = {
    "windows": "5b297d8265201197a3a6aea226873e81ecb2b41cb454957232c8df133038cd67",
    "previews": "6876c05649e383b34af553fb46dd13b6a56809955814851ca4e415aabd2d4164",
    "captions": "c7ff044776103174526296ae92719c97bb515605e880eaae64cd9c0133d54fc3",
    "enhancements": "e14f5f3e7ec65f40beb4e0cc59f22fa510256369bf2b3cf6782f3fc0cd1af701",
}


def ids(flags: dict[str, Any] | None = None) -> dict[str, str]:
    settings = load_settings(flags=PROMPTS | (flags or {}))
    return {name: identity(settings).config_id for name, identity in IDENTITIES.items()}


def changed_by(flags: dict[str, Any]) -> set[str]:
    before, after = ids(), ids(flags)
    return {name for name in before if before[name] != after[name]}


def test_the_ids_of_the_defaults_stay_what_they_are_so_that_no_lake_is_captioned_again() -> None:
    assert ids() == GOLDEN


def test_the_id_is_made_from_a_canonical_text_that_the_table_configs_can_show() -> None:
    settings = load_settings(flags={"--captioning-window-size": 128, "--captioning-sampling-fps": 1})
    identity = prep_config(settings)
    assert identity.kind == "windows"
    assert identity.canonical == (
        '{"format":1,"kind":"windows","settings":{"sampling_fps":1.0,"window_size":128}}'
    )
    assert identity.config_id == "4c56a4dd60d0784f2a2563bc69d58111cef90cf56c4a21e3872352535343970a"


def test_a_prompt_in_any_script_is_kept_readable() -> None:
    settings = load_settings(flags={"--captioning-prompt-text": "Was fährt da? 何ですか"})
    assert "Was fährt da? 何ですか" in caption_config(settings, MODEL).canonical


CHANGING: list[tuple[dict[str, Any], set[str]]] = [
    ({"--captioning-window-size": 255}, {"windows"}),
    ({"--captioning-remainder-threshold": 127}, {"windows"}),
    ({"--captioning-sampling-fps": 2.5}, {"windows"}),
    ({"--check-frames": True}, {"windows"}),
    ({"--preview-target-fps": 2}, {"previews"}),
    ({"--preview-target-height": 241}, {"previews"}),
    ({"--preview-compression-level": 0}, {"previews"}),
    ({"--preview-quality": 51}, {"previews"}),
    ({"--captioning-prompt-text": "Describe the clip!"}, {"captions"}),
    ({"--captioning-stage2-caption": True}, {"captions"}),
    ({"--captioning-model-does-preprocess": True}, {"captions"}),
    ({"--captioning-preprocess-dtype": "float16"}, {"captions"}),
    ({"--captioning-max-output-tokens": 511}, {"captions"}),
    ({"--enhance-captions-prompt-text": "Make it worse."}, {"enhancements"}),
    ({"--enhance-captions-max-output-tokens": 511}, {"enhancements"}),
    ({"--dtype": "float32"}, {"captions", "enhancements"}),
    ({"--temperature": 0.2}, {"captions", "enhancements"}),
    ({"--top-p": 0.5}, {"captions", "enhancements"}),
    ({"--repetition-penalty": 1}, {"captions", "enhancements"}),
    ({"--max-model-len": 16384}, {"captions", "enhancements"}),
    ({"--vllm-argument": ("kv_cache_dtype=fp8",)}, {"captions", "enhancements"}),
]


@pytest.mark.parametrize(("flags", "tables"), CHANGING, ids=str)
def test_a_setting_that_changes_the_output_makes_new_work_for_its_table_alone(
    flags: dict[str, Any], tables: set[str]
) -> None:
    assert changed_by(flags) == tables


NEUTRAL = {
    "--captioning-batch-size": 3,
    "--enhance-captions-batch-size": 5,
    "--preview-num-cpus-per-worker": 1,
    "--captioning-use-vllm-mmcache": True,
    "--verbose": True,
    "--max-in-flight": 8,
    "--hang-timeout-s": 20,
    "--record-dir": "records",
    "--model-dir": "elsewhere",
    "--input-path": ("clips",),
    "--output-path": "lake",
    "--ingest-mode": "value",
    "--from-curator": "curated",
    "--layout": "curator",
    "--export-path": "files",
    "--export-clips": True,
    "--windows-per-commit": 7,
    "--generate-captions": True,
    "--enhance-captions": True,
    "--generate-previews": True,
    "--keep-window-mp4": True,
    "--max-decode-s": 60,
    "--max-frame-pixels": 4096,
    "--master": "local[1]",
    "--driver-memory": "4g",
    "--spark-property": ("spark.ui.enabled=true",),
    "--captioning-stage2-prompt-text": "never used without a second pass",
}


@pytest.mark.parametrize("flag", NEUTRAL)
def test_a_setting_that_only_changes_speed_or_place_repeats_no_work(flag: str) -> None:
    assert changed_by({flag: NEUTRAL[flag]}) == set()


def test_arguments_for_vllm_are_the_same_however_they_are_written() -> None:
    one = {"--vllm-argument": ("kv_cache_dtype=fp8", "block_size=16")}
    other = {"--vllm-argument": ("block-size= 16", "--kv-cache-dtype=fp8")}
    assert ids(one) == ids(other) != ids()
    assert ids(one)["windows"] == ids()["windows"]


def test_a_value_spelt_out_that_is_the_default_repeats_no_work() -> None:
    spelt_out = {
        flag: not field.info.default if field.negated else field.info.default
        for field in FIELDS
        for flag in field.flags
        if field.info.default is not None and flag not in PROMPTS
    }
    assert changed_by(spelt_out) == set()
    assert changed_by({"--captioning-sampling-fps": "2"}) == set()


def test_an_own_prompt_with_the_words_of_the_built_in_one_repeats_no_work() -> None:
    from conf.prompts import caption_prompt

    built_in = load_settings(flags={"--captioning-prompt-variant": "av"})
    spelt_out = load_settings(flags={"--captioning-prompt-text": caption_prompt(built_in)})
    assert caption_config(built_in, MODEL) == caption_config(spelt_out, MODEL)


def test_a_prompt_of_the_second_pass_counts_once_that_pass_runs() -> None:
    stage2 = {"--captioning-stage2-caption": True}
    own = stage2 | {"--captioning-stage2-prompt-text": "Look again:"}
    assert len({ids()["captions"], ids(stage2)["captions"], ids(own)["captions"]}) == 3


@pytest.mark.parametrize("make", [caption_config, enhance_config])
def test_other_weights_or_another_precision_are_other_captions(make: Any) -> None:
    models = [
        MODEL,
        ModelIdentity("Qwen/Qwen3-VL-8B-Instruct", MODEL.revision),
        ModelIdentity(MODEL.model_id, "d4e5f6"),
        ModelIdentity(MODEL.model_id, MODEL.revision, fp8=True),
    ]
    assert len({make(load_settings(), model).config_id for model in models}) == len(models)


def test_every_setting_has_been_thought_about() -> None:
    """A new setting belongs to the identities, or to the list of those that change no output."""
    tried = {flag for flags, _ in CHANGING for flag in flags} | set(NEUTRAL)
    chosen_model = {"--captioning-algorithm", "--model-variant", "--enhance-captions-algorithm"}
    precision = {"--captioning-use-fp8-weights", "--enhance-captions-use-fp8-weights"}
    tried |= chosen_model | precision  # both reach the id through ModelIdentity
    tried |= {"--captioning-prompt-variant", "--enhance-captioning-prompt-variant"}  # through the prompt
    forgotten = [field.path for field in FIELDS if not tried & set(field.flags)]
    assert forgotten == []
