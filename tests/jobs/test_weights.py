"""Which weights answer, as the driver sees it, and bringing them to the executors."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from conf.errors import SettingsError
from conf.loading import load_settings
from conf.variants import QWEN3, VARIANTS
from jobs.models import caption_engine, caption_model, text_engine, text_model
from jobs.weights import provide_weights
from tests.hub_server import Hub, checkpoint, running
from udfs.weights import problems

REVISION = str(QWEN3.text_revision)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub(files={QWEN3.text_model_id: {REVISION: checkpoint(1000, 2000)}})) as hub:
        yield hub


def test_every_model_of_a_hub_is_pinned_to_a_commit_and_the_demo_to_none() -> None:
    for name, variant in VARIANTS.items():
        revisions = (variant.caption_revision, variant.text_revision)
        if name == "demo":
            assert revisions == (None, None)
        else:
            assert all(revision and len(revision) == 40 for revision in revisions)


def test_a_driver_without_weights_knows_which_ones_will_answer(tmp_path: Path) -> None:
    settings = load_settings(flags={"--model-variant": "qwen3", "--model-dir": str(tmp_path)})
    assert caption_model(settings).revision == QWEN3.caption_revision
    assert text_model(settings).revision == REVISION
    weights = caption_engine(settings).weights
    assert weights is not None
    assert (weights.repo_id, weights.revision) == (QWEN3.caption_model_id, QWEN3.caption_revision)
    assert list(tmp_path.iterdir()) == []


def test_weights_copied_by_hand_count_by_their_content_and_nothing_is_fetched(tmp_path: Path) -> None:
    settings = load_settings(flags={"--model-variant": "qwen3", "--model-dir": str(tmp_path)})
    folder = tmp_path / QWEN3.text_model_id
    folder.mkdir(parents=True)
    for name, data in checkpoint(1000, 2000).items():
        (folder / name).write_bytes(data)
    assert text_engine(settings).weights is None
    assert text_model(settings).revision != REVISION
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SettingsError, match=r"model-00002-of-00002\.safetensors is missing"):
        text_model(settings)


def test_a_model_whose_weights_are_made_up_needs_none_and_counts_by_the_files_that_are_there(
    tmp_path: Path,
) -> None:
    flags = {"--model-variant": "qwen3", "--model-dir": str(tmp_path)}
    settings = load_settings(flags=flags | {"--vllm-argument": ("load-format=dummy",)})
    first, second = tmp_path / QWEN3.caption_model_id, tmp_path / "other" / QWEN3.caption_model_id
    for folder, config in ((first, b"{}"), (second, b'{"a": 1}')):
        folder.mkdir(parents=True)
        (folder / "config.json").write_bytes(config)
    assert caption_engine(settings).weights is None
    other = load_settings(
        flags=flags | {"--model-dir": str(tmp_path / "other"), "--vllm-argument": ("load_format=dummy",)}
    )
    assert len({caption_model(settings).revision, caption_model(other).revision, QWEN3.caption_revision}) == 3
    with pytest.raises(SettingsError, match=r"\*\.safetensors is missing"):
        caption_engine(load_settings(flags=flags))
    (first / "config.json").rename(first / "model.safetensors")
    with pytest.raises(SettingsError, match=r"config\.json is missing"):
        caption_model(settings)


def test_the_demo_never_reaches_for_a_network(tmp_path: Path) -> None:
    settings = load_settings(flags={"--model-variant": "demo", "--model-dir": str(tmp_path)})
    for ask in (caption_model, text_model, caption_engine, text_engine):
        with pytest.raises(SettingsError, match="holds no weights"):
            ask(settings)


def test_executors_get_the_weights_once_for_each_machine_or_the_job_ends_with_the_reason(
    spark: SparkSession, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(flags={"--model-variant": "qwen3", "--model-dir": str(tmp_path)})
    before = text_model(settings)
    # What Spark gives its Python workers as their environment.
    environment = spark.sparkContext.environment
    monkeypatch.setitem(environment, "HF_ENDPOINT", hub.url)
    provide_weights(spark, text_engine(settings))
    assert problems(tmp_path / QWEN3.text_model_id) == []
    assert len(hub.fetched()) == len(set(hub.fetched())) == 5
    assert text_model(settings) == before
    with pytest.raises(SettingsError, match=f"the hub has no {QWEN3.caption_model_id}"):
        provide_weights(spark, caption_engine(settings))
