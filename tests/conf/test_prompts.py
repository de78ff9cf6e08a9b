"""The prompts: the variant's own text, or the user's."""

import pytest

from conf.loading import load_settings
from conf.prompts import caption_prompt, enhancement_prompt, stage2_prompt


def test_every_variant_has_a_prompt_of_its_own() -> None:
    captions = [
        caption_prompt(load_settings(flags={"--captioning-prompt-variant": name}))
        for name in ("default", "av", "av-surveillance")
    ]
    enhancements = [
        enhancement_prompt(load_settings(flags={"--enhance-captioning-prompt-variant": name}))
        for name in ("default", "av-surveillance")
    ]
    prompts = captions + enhancements
    assert len(set(prompts)) == len(prompts)
    assert all(len(prompt) > 40 and prompt == prompt.strip() for prompt in prompts)


@pytest.mark.parametrize("variant", ["default", "av-surveillance"])
def test_a_prompt_of_the_users_own_overrides_the_variant(variant: str) -> None:
    settings = load_settings(
        flags={
            "--captioning-prompt-variant": variant,
            "--captioning-prompt-text": "Zähle die Vögel.",
            "--enhance-captioning-prompt-variant": variant,
            "--enhance-captions-prompt-text": "Make it rhyme.",
        }
    )
    assert caption_prompt(settings) == "Zähle die Vögel."
    assert enhancement_prompt(settings) == "Make it rhyme."


def test_the_second_pass_has_a_prompt_only_when_it_is_asked_for() -> None:
    assert stage2_prompt(load_settings(flags={"--captioning-stage2-prompt-text": "Look again:"})) is None
    built_in = stage2_prompt(load_settings(flags={"--captioning-stage2-caption": True}))
    assert built_in is not None
    assert len(built_in) > 40
    own = {"--captioning-stage2-caption": True, "--captioning-stage2-prompt-text": "Look again:"}
    prompt = stage2_prompt(load_settings(flags=own))
    assert prompt is not None
    assert prompt.startswith("Look again:")
