"""The zip and the wheel: what is missing there fails on a cluster and nowhere else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.checkout import ROOT, copy_checkout
from tools.make_zip import members

# Every module is imported from the archive, and prompts and settings are read out of it.
PROGRAM = """
import importlib, sys
archive = sys.argv[1]
sys.path.insert(0, archive)
modules = sys.argv[2].split(",")
for name in modules:
    module = importlib.import_module(name)
    assert module.__file__.startswith(archive), (name, module.__file__)
from conf.prompts import prompt_file
from importlib.resources import files
print(prompt_file("caption_av-surveillance"))
assert "max_output_tokens" in (files("conf") / "local.yaml").read_text()
import captionlake
try:
    captionlake.main(["--version"])
except SystemExit as stop:
    assert stop.code == 0
"""


def importable_modules() -> list[str]:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in members() if path.suffix == ".py"
    ]
    return [name.removesuffix(".__init__") for name in names]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zip") / "captionlake.zip"
    subprocess.run([sys.executable, "tools/make_zip.py", str(out)], cwd=ROOT, check=True)
    return out


def test_every_module_and_prompt_can_be_read_from_the_zip_alone(archive: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", PROGRAM, str(archive), ",".join(importable_modules())]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        (ROOT / "conf/prompt_texts/caption_av-surveillance.txt").read_text().strip(),
        "captionlake 0.1.0",
    ]


def test_the_same_sources_give_the_same_zip(archive: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.zip"
    subprocess.run([sys.executable, "tools/make_zip.py", str(again)], cwd=ROOT, check=True)
    assert again.read_bytes() == archive.read_bytes()


def test_the_wheel_has_what_the_zip_has_and_no_tests(archive: Path, tmp_path: Path) -> None:
    sources = copy_checkout(tmp_path / "sources")
    build = [
        sys.executable,
        "-m",
        "uv",
        "build",
        "--quiet",
        "--wheel",
        "--out-dir",
        str(tmp_path),
        str(sources),
    ]
    subprocess.run(build, check=True)
    [wheel] = tmp_path.glob("captionlake-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == set(zipfile.ZipFile(archive).namelist())
