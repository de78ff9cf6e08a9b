"""What vLLM's worker of a vision model asks for before it loads the model.

Nothing of vLLM is imported before it asks: this package is read where there is no vLLM, too.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "WorkerExtension":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from udfs.engine.tower_width import load_widened
    from udfs.engine.worker import WorkerExtension

    load_widened()
    return WorkerExtension
