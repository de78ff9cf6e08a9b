"""What vLLM's workers ask for before they load their models.

Nothing of vLLM is imported before it asks: this package is read where there is no vLLM, too.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("TextWorkerExtension", "VisionWorkerExtension"):
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from udfs.engine.fused_layers import fuse_layers
    from udfs.engine.tower_width import load_widened
    from udfs.engine.worker import WorkerExtension

    sees = name == "VisionWorkerExtension"
    fuse_layers(of_towers=sees)
    if sees:
        load_widened()
    return WorkerExtension
