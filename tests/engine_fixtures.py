"""Engines for tests: checkpoints made once, one model load of each kind for the whole run."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from conf.engine import EngineSettings, RenderSettings
from conf.variants import DEMO
from demo.make_checkpoints import TEXT_ID, VISION_ID, make_checkpoints
from udfs.engine.client import EngineClient
from udfs.engine.runtime import RUNTIME_DIR_VARIABLE, kill_group, read_holder
from udfs.engine.slot import Slot

CHECKPOINTS = Path(__file__).parents[1] / "demo" / "checkpoints"
LOAD_TIMEOUT_S = 400

MAX_MODEL_LEN = 2048
"""Short enough that a window can be too long for the engine."""


@dataclass(frozen=True)
class DemoModels:
    """The folders of the demo checkpoints; `model_dir` is what the jobs take."""

    model_dir: Path
    vision: Path
    text: Path


@pytest.fixture(scope="session", autouse=True)
def engine_runtime() -> Iterator[Path]:
    """A runtime folder of this test run alone, whose list of loads counts this run's; nothing survives it."""
    folder = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
    before = os.environ.get(RUNTIME_DIR_VARIABLE)
    os.environ[RUNTIME_DIR_VARIABLE] = str(folder)
    yield folder
    end_hosts(folder)
    if before is None:
        del os.environ[RUNTIME_DIR_VARIABLE]
    else:
        os.environ[RUNTIME_DIR_VARIABLE] = before
    shutil.rmtree(folder, ignore_errors=True)


def end_hosts(folder: Path) -> None:
    """Ends every host of `folder`, engines included."""
    for lock in folder.glob("*.lock"):
        holder = read_holder(lock)
        if holder is not None:
            kill_group(holder)


@pytest.fixture(scope="session")
def demo_models() -> DemoModels:
    """The demo's trained models."""
    return DemoModels(CHECKPOINTS, CHECKPOINTS / VISION_ID, CHECKPOINTS / TEXT_ID)


@pytest.fixture(scope="session")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> DemoModels:
    """Models of random weights, whose answers are noise that differs with every pixel."""
    model_dir = tmp_path_factory.mktemp("models")
    return DemoModels(model_dir, *make_checkpoints(model_dir))


@pytest.fixture(scope="session")
def engine_slot(spark: SparkSession) -> Slot:
    """Where the engines of this run are: with the local Spark session, whose jobs so share them."""
    jvm = spark.sparkContext._jvm
    assert jvm is not None
    return Slot.of_process(int(jvm.java.lang.ProcessHandle.current().pid()))


def vision_settings(models: DemoModels, **render: object) -> EngineSettings:
    """Settings of the vision engine that the tests share; `render` does not change which engine that is."""
    values = {**RenderSettings.of_variant(DEMO).model_dump(), **render}
    return EngineSettings(
        model_path=str(models.vision),
        kind="caption",
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        render=RenderSettings(**values),
    )


@pytest.fixture(scope="session")
def vision_engine(demo_models: DemoModels, engine_slot: Slot) -> Iterator[EngineClient]:
    """A client of the vision engine, which is loaded."""
    with EngineClient(vision_settings(demo_models), engine_slot) as client:
        client.wait_ready(LOAD_TIMEOUT_S)
        yield client


@pytest.fixture(scope="session")
def text_engine(demo_models: DemoModels, engine_slot: Slot) -> Iterator[EngineClient]:
    """A client of the text engine, which is loaded."""
    settings = EngineSettings(
        model_path=str(demo_models.text), kind="text", dtype="float32", max_model_len=MAX_MODEL_LEN
    )
    with EngineClient(settings, engine_slot) as client:
        client.wait_ready(LOAD_TIMEOUT_S)
        yield client
