"""The worker's part of the engine, beside models made for a test."""

from types import SimpleNamespace
from typing import Any

from udfs.engine.worker import WorkerExtension


def extension_of(model: Any) -> WorkerExtension:
    """Returns what vLLM would mix into the worker that holds the model."""
    extension = WorkerExtension()
    extension.model_runner = SimpleNamespace(get_model=lambda: model)
    return extension
