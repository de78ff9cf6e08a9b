"""What a model is told, read back from what reached it: every variant of the prompts, frames and times."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkout import ROOT
from tests.engine_fixtures import DemoModels
from tests.pipeline.asking import FRAME_RATE, ask_captions, ask_enhancements, clip_work, film, record_of
from tests.pipeline.conftest import lake_settings
from udfs.engine.client import EngineClient
from udfs.engine.slot import Slot

pytestmark = pytest.mark.models

OWN = "Wer fährt zuerst los? 何ですか"
CAPTION_PROMPTS = {"default": None, "av": None, "av-surveillance": None, "own": OWN}
SECOND_PROMPTS = {"built in": None, "own": "Kürzer, bitte:"}
ENHANCEMENT_PROMPTS = {"default": None, "av-surveillance": None, "own": "Make it rhyme."}
CAPTIONS = ["A red circle moves left, on a blue background.", "Ein Kreis, 丸, kommt."]

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
HELPFUL = "You are a helpful assistant."


def chat(system: str, user: str) -> str:
    """A conversation that the model goes on with, in ChatML."""
    said = "".join(
        f"<|im_start|>{who}\n{text}<|im_end|>\n" for who, text in (("system", system), ("user", user))
    )
    return f"{said}<|im_start|>assistant\n"


def prompt_text(name: str) -> str:
    return (ROOT / "conf/prompt_texts" / f"{name}.txt").read_text(encoding="utf-8").strip()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("prompted"))


@pytest.fixture(scope="module")
def tokenizer(demo_models: DemoModels) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_models.vision)


@pytest.mark.parametrize("second", SECOND_PROMPTS)
@pytest.mark.parametrize("prompt", CAPTION_PROMPTS)
def test_the_model_is_asked_the_prompt_about_the_frames_and_again_with_its_caption(
    vision_engine: EngineClient,
    engine_slot: Slot,
    engine_flags: dict[str, Any],
    tokenizer: Any,
    clip: Path,
    tmp_path: Path,
    prompt: str,
    second: str,
) -> None:
    own, own_second = CAPTION_PROMPTS[prompt], SECOND_PROMPTS[second]
    chosen = {"captioning_prompt_variant": "av" if own else prompt, "captioning_prompt_text": own}
    settings = lake_settings(
        engine_flags,
        tmp_path / "lake",
        **chosen,
        captioning_stage2_caption=True,
        captioning_stage2_prompt_text=own_second,
        captioning_window_size=60,
        captioning_remainder_threshold=30,
        captioning_sampling_fps=3,
        record_dir=str(tmp_path / "records"),
    )
    work = clip_work(clip, settings)
    answers = ask_captions(settings, [work], engine_slot)
    assert len(answers) == 2
    asked = own or prompt_text(f"caption_{prompt}")
    more = own_second or prompt_text("stage2_default")
    for window, answer in zip(work.windows, answers, strict=True):
        refined = f"{asked}\n\n{more}\n\n{answer['stage1_caption']}"
        for stage, text in ((1, asked), (2, refined)):
            record, arrays = record_of(settings, "captions", window.window_id, stage)
            assert record["prompt_text"] == chat(HELPFUL, VIDEO + text)
            assert_same_tokens(tokenizer, record, arrays)
            assert_frames_and_times(record, arrays, window.frame_indices or [])
        assert answer["stage1_caption"]
        assert answer["caption_status"] in ("success", "truncated")
        assert answer["caption_error"] is None


def assert_same_tokens(tokenizer: Any, record: dict[str, Any], arrays: Any) -> None:
    """The tokens are the text's, the video's placeholder stretched to one token for four patches."""
    tokens = tokenizer.convert_ids_to_tokens(record["token_ids"])
    first, number = tokens.index("<|video_pad|>"), tokens.count("<|video_pad|>")
    assert tokens[first : first + number] == ["<|video_pad|>"] * number
    shrunk = record["token_ids"][:first] + record["token_ids"][first + number - 1 :]
    assert tokenizer.decode(shrunk) == record["prompt_text"]
    height, width = arrays["frames"].shape[1:3]
    assert number == len(arrays["frames"]) // 2 * (height // 28) * (width // 28)


def assert_frames_and_times(record: dict[str, Any], arrays: Any, frame_indices: list[int]) -> None:
    """The video has the sampled frames, told with their real times."""
    times_s = np.array(frame_indices) / float(FRAME_RATE)
    assert len(arrays["frames"]) == len(frame_indices)
    assert record["times_s"] == pytest.approx(times_s, abs=1e-4)
    assert arrays["times_s"].tolist() == record["times_s"]
    if record["processed"]:  # empty where vLLM has the video in its cache
        spacing_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1)
        assert record["processed"]["second_per_grid_ts"] == pytest.approx(2 * spacing_s, abs=1e-3)
        assert record["processed"]["video_grid_thw"][0] == len(frame_indices) // 2
    else:
        assert record["stage"] == 2


@pytest.mark.parametrize("prompt", ENHANCEMENT_PROMPTS)
def test_the_text_model_gets_the_instruction_as_system_prompt_and_the_caption_as_the_user_s_words(
    text_engine: EngineClient,
    engine_slot: Slot,
    engine_flags: dict[str, Any],
    tmp_path: Path,
    demo_models: DemoModels,
    prompt: str,
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_models.text)
    own = ENHANCEMENT_PROMPTS[prompt]
    settings = lake_settings(
        engine_flags,
        tmp_path / "lake",
        enhance_captioning_prompt_variant="default" if own else prompt,
        enhance_captions_prompt_text=own,
        record_dir=str(tmp_path / "records"),
    )
    answers = ask_enhancements(settings, CAPTIONS, engine_slot)
    for number, caption in enumerate(CAPTIONS):
        record, _ = record_of(settings, "enhancements", f"e{number}")
        assert record["prompt_text"] == chat(own or prompt_text(f"enhance_{prompt}"), caption)
        assert tokenizer.decode(record["token_ids"]) == record["prompt_text"]
        assert answers[number]["enhanced_caption"] == record["answer"]["text"]
