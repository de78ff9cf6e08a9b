"""Arguments for vLLM that a user gives: what is refused, and where the others go."""

import re

import pytest

from conf.errors import SettingsError
from conf.loading import load_settings
from jobs.models import caption_engine, text_engine
from tests.engine_fixtures import CHECKPOINTS


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (("kv_cache_dtype",), "'kv_cache_dtype' is not NAME=VALUE"),
        (("kv cache=fp8",), "'kv cache=fp8' is not NAME=VALUE"),
        (("max_num_seqs=4",), "max_num_seqs cannot be given here; it follows from: engine.max_in_flight"),
        (("trust-remote-code=true",), "code from a checkpoint is never run"),
        (("tensor-parallel-size=2",), "one engine for each GPU"),
        (("hf_token=secret",), "HF_TOKEN in the environment"),
        (("block_size=16", "block-size=32"), "block_size is given twice"),
    ],
)
def test_arguments_for_vllm_that_cannot_be_are_refused_with_the_reason(
    texts: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(SettingsError, match=rf"engine\.vllm_arguments=.*{re.escape(reason)}"):
        load_settings(flags={"--vllm-argument": texts})


def test_arguments_for_vllm_reach_both_engines_with_the_types_that_they_have() -> None:
    texts = ("block-size=16", "kv_cache_dtype=fp8", 'compilation_config={"mode": 0}', "enforce_eager=true")
    settings = load_settings(
        flags={"--vllm-argument": texts, "--model-dir": str(CHECKPOINTS), "--model-variant": "demo"}
    )
    expected = {
        "block_size": 16,
        "kv_cache_dtype": "fp8",
        "compilation_config": {"mode": 0},
        "enforce_eager": True,
    }
    plain = load_settings(flags={"--model-dir": str(CHECKPOINTS), "--model-variant": "demo"})
    for engine in (caption_engine, text_engine):
        assert engine(settings).vllm_arguments == expected
        assert engine(settings).key != engine(plain).key
