"""Captionlake's front door: the version, the public names and the command line's entry point."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.api import Pipeline, register_functions
    from jobs.stages import (
        CaptionEnhancementStage,
        CaptionGenerationStage,
        CaptionPreparationStage,
        PreviewStage,
    )
    from udfs.curator import get_output_path_clips, get_output_path_metas, get_output_path_previews

__version__ = "0.1.0"

__all__ = [
    "CaptionEnhancementStage",
    "CaptionGenerationStage",
    "CaptionPreparationStage",
    "Pipeline",
    "PreviewStage",
    "__version__",
    "get_output_path_clips",
    "get_output_path_metas",
    "get_output_path_previews",
    "main",
    "register_functions",
]

# Imported at their first use: Spark takes a second, and the command line says its help without it.
_MODULES = {
    "Pipeline": "jobs.api",
    "register_functions": "jobs.api",
    "CaptionPreparationStage": "jobs.stages",
    "PreviewStage": "jobs.stages",
    "CaptionGenerationStage": "jobs.stages",
    "CaptionEnhancementStage": "jobs.stages",
    "get_output_path_clips": "udfs.curator",
    "get_output_path_metas": "udfs.curator",
    "get_output_path_previews": "udfs.curator",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    from jobs.cli import main as cli_main

    return cli_main(sys.argv[1:] if argv is None else argv)


def task() -> None:
    """Runs the command line as the task of a scheduler, which sees no exit code.

    Raises:
        RuntimeError: the command did not end well; what it wrote before says why.
    """
    code = main()
    if code:
        raise RuntimeError(
            f"captionlake {' '.join(sys.argv[1:2])} ended with code {code}; see its error above"
        )


if __name__ == "__main__":
    sys.exit(main())
