"""Settings load where neither Spark nor a model is installed."""

import subprocess
import sys

MODULES = (
    "conf.engine, conf.identity, conf.loading, conf.prompts, conf.settings, conf.variants, schemas.status"
)
HEAVY = ("pyspark", "torch", "vllm", "transformers", "pandas", "pyarrow", "av")


def test_settings_and_statuses_load_without_spark_or_a_model() -> None:
    program = f"import {MODULES}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
