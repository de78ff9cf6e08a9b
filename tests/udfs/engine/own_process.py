"""Programs in processes of their own, for tests of kernels."""

import os
import subprocess
import sys
from pathlib import Path

from tests.checkout import ROOT


def run_python(program: str, folder: Path, *arguments: str, **environment: str) -> str:
    """Runs a program in a process of its own: Triton looks at its environment when it is first imported."""
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    own |= {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
