"""Spark 4.0, which clusters bring and the suite's own environment does not have."""

import os
import sys
from pathlib import Path

from tests.checkout import ROOT

INSTALLED = Path(sys.prefix) / "spark-4.0"
"""Where `make test` puts it."""


def environment() -> dict[str, str]:
    """The environment of a Python process that imports Spark 4.0 and its Delta, and this checkout."""
    assert (INSTALLED / "pyspark").is_dir(), f"Spark 4.0 is not in {INSTALLED}; `make test` installs it"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYSPARK_", "SPARK_"))}
    return {**clean, "PYTHONPATH": f"{INSTALLED}{os.pathsep}{ROOT}"}
