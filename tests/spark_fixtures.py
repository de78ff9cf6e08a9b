"""The one local Spark session of the suite, lakes in temporary folders, and loggers as they were."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from conf.loading import load_settings
from conf.settings import Settings
from jobs.lake import Lake
from jobs.session import get_session
from udfs.worker_log import NAMES


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The session that `captionlake` itself would start: local mode, Delta, two cores."""
    # It lives longer than any other, and what it remembers of a thousand queries fills a small heap.
    flags = {"--master": "local[2]", "--driver-memory": "3g"}
    session = get_session(load_settings(flags=flags).spark)
    yield session
    session.stop()


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a job over a lake of the test's own: `make_settings(**flags)`, `-` written as `_`."""

    def make(**flags: Any) -> Settings:
        given = {"--" + name.replace("_", "-"): value for name, value in flags.items()}
        return load_settings(flags={"--output-path": str(tmp_path / "lake"), **given})

    return make


@pytest.fixture(scope="session")
def blank_lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of empty tables, to be copied: creating seven tables takes seconds."""
    folder = tmp_path_factory.mktemp("blank") / "lake"
    Lake(spark, str(folder)).create()
    return folder


@pytest.fixture
def loggers() -> Iterator[None]:
    """The command line sends log lines to its own stderr; other tests want them elsewhere again."""
    before = {name: (logging.getLogger(name).level, logging.getLogger(name).propagate) for name in NAMES}
    yield
    for name, (level, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(level)
        logger.propagate = propagate
