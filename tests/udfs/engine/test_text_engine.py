"""The text engine, with real vLLM."""

import numpy as np
import pytest

from demo.stories import caption_of, read_description
from demo.training.learn import draw_texts
from demo.training.scores import score
from tests.engine_fixtures import MAX_MODEL_LEN, DemoModels
from tests.udfs.engine.requests_maker import caption_request
from udfs.engine.client import EngineClient
from udfs.engine.requests import Generation, TextRequest

TIMEOUT_S = 120
GREEDY = Generation(temperature=0.0, max_output_tokens=40)


def test_prompt_tokens_are_those_of_the_chat_template(
    text_engine: EngineClient, demo_models: DemoModels
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_models.text)
    for system in (None, "Rewrite the caption."):
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": "A red circle moves left."})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        request = TextRequest("t", "A red circle moves left.", system, GREEDY)
        reply = text_engine.submit(request).result(TIMEOUT_S)
        assert reply.prompt_tokens == len(tokenizer(text)["input_ids"])
        assert reply.text
        assert reply.stage1_text is None


def test_the_same_text_is_answered_the_same_alone_and_among_others(text_engine: EngineClient) -> None:
    prompts = [f"A caption about {k} things." for k in range(24)]
    alone = [text_engine.submit(TextRequest("a", p, "S", GREEDY)).result(TIMEOUT_S).text for p in prompts[:3]]
    futures = [text_engine.submit(TextRequest("b", p, "S", GREEDY), 24) for p in prompts]
    assert [future.result(TIMEOUT_S).text for future in futures][:3] == alone


def test_an_overlong_or_empty_text_costs_its_own_answer_only(text_engine: EngineClient) -> None:
    prompts = ["fine", "word " * 40_000, "", "fine"]
    futures = [text_engine.submit(TextRequest("t", prompt, None, GREEDY), 4) for prompt in prompts]
    errors = [future.result(TIMEOUT_S).error for future in futures]
    assert errors[0] is None
    assert str(MAX_MODEL_LEN) in str(errors[1])
    assert "empty" in str(errors[2])
    assert errors[3] is None


def test_a_request_of_the_other_kind_is_refused(text_engine: EngineClient) -> None:
    with pytest.raises(ValueError, match="caption"):
        text_engine.submit(caption_request("w"))


def test_the_demo_text_model_keeps_every_fact_of_200_unseen_captions_and_adds_none(
    text_engine: EngineClient,
) -> None:
    rng = np.random.default_rng(5_000_000)
    stories, advice = draw_texts(rng, 200)
    captions = [caption_of(story) for story in stories]
    generation = Generation(max_output_tokens=96)
    requests = [TextRequest("e", *asked, generation) for asked in zip(captions, advice, strict=True)]
    futures = [text_engine.submit(request, 64) for request in requests]
    told = [future.result(TIMEOUT_S).text or "" for future in futures]
    found = score(zip(told, stories, strict=True), read_description)
    assert found.fact_share >= 0.98
    assert found.added_facts == 0
    for text, caption in zip(told, captions, strict=True):
        assert len(text.split()) >= 1.5 * len(caption.split())
