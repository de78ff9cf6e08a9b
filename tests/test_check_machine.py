"""What `make demo` and `make test` say on a machine that lacks something."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT

TOOLS = ("sed", "head", "sh")


def machine(folder: Path, **programs: str) -> dict[str, str]:
    """The environment of a machine that has a few tools and these programs, as shell scripts."""
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, script in programs.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return {"PATH": str(folder)}


def check(python: str, environment: dict[str, str]) -> tuple[int, str]:
    command = ["/bin/sh", str(ROOT / "tools" / "check_machine.sh"), python]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr


def java(version: str) -> str:
    return f"echo 'openjdk version \"{version}\"' >&2"


@pytest.mark.parametrize("version", ["17.0.15", "21.0.2"])
def test_a_machine_with_python_and_java_passes(tmp_path: Path, version: str) -> None:
    assert check(sys.executable, machine(tmp_path / "bin", java=java(version))) == (0, "")


def test_missing_java_is_named_with_how_to_get_it(tmp_path: Path) -> None:
    code, told = check(sys.executable, machine(tmp_path / "bin"))
    assert code == 1
    assert "Java is missing: install Java 17 or 21" in told


def test_java_that_is_too_old_is_named_with_its_version(tmp_path: Path) -> None:
    code, told = check(sys.executable, machine(tmp_path / "bin", java=java("11.0.2")))
    assert code == 1
    assert "Java 11" in told
    assert "Spark needs Java 17 or 21" in told


def test_missing_python_is_named_with_how_to_get_it(tmp_path: Path) -> None:
    code, told = check("", machine(tmp_path / "bin", java=java("17.0.1")))
    assert code == 1
    assert "Python is missing: install Python 3.11 or 3.12" in told


def test_another_python_is_named_with_its_version(tmp_path: Path) -> None:
    other = '[ "$1" = --version ] && echo Python 3.9.2 || exit 1'
    environment = machine(tmp_path / "bin", java=java("17.0.1"), python3=other)
    code, told = check("python3", environment)
    assert code == 1
    assert "Python 3.9.2: install Python 3.11 or 3.12" in told


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_says_it_before_it_installs_anything(target: str) -> None:
    command = ["make", "--dry-run", target]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "tools/check_machine.sh" in shown.stdout
    assert "pip" not in shown.stdout.partition("tools/check_machine.sh")[0]
