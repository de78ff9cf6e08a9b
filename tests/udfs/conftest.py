"""Fixtures of the video tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which generated clips are made once for all tests."""
    return tmp_path_factory.mktemp("clips")
