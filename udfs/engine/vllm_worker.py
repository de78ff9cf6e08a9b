"""What vLLM imports in the worker of a vision model, before the worker loads it."""

from udfs.engine.tower_width import load_widened
from udfs.engine.worker import WorkerExtension

__all__ = ["WorkerExtension"]

load_widened()
