"""The README's commands, in the order and the way of a reader who types them into a fresh checkout."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.lake import Lake
from jobs.sql import query, write_result
from tests.checkout import ROOT, copy_checkout
from tests.documented import cluster_commands

NOT_RUN = ("make test\n", *(command.text + "\n" for command in cluster_commands("README.md")))
"""The suite cannot run itself, and what is for clusters has its tests in `tests/cluster`."""

BLOCK = re.compile(r"^```(sh|bash|sql)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
WIDTH = 100


@dataclass(frozen=True)
class Block:
    """A fenced block of the README; `shown` is the result that the README prints below it."""

    language: str
    text: str
    shown: str | None


def readme_blocks() -> list[Block]:
    found = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    return [Block(language, text, shown or None) for language, text, shown in found]


@dataclass
class Shell:
    """A reader's shell: what one block exports, the next ones see."""

    folder: Path
    environment: dict[str, str]

    def run(self, text: str) -> None:
        exported = self.folder.parent / "environment"
        script = f"set -eo pipefail\n{text}\nenv -0 > {exported}\n"
        shell = ["bash", "-c", script]
        with subprocess.Popen(shell, cwd=self.folder, env=self.environment, start_new_session=True) as bash:
            try:
                assert bash.wait() == 0, text
            finally:
                # A block that is given up must leave no Spark behind.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(bash.pid, signal.SIGKILL)
        pairs = exported.read_text().rstrip("\0").split("\0")
        self.environment = dict(pair.split("=", 1) for pair in pairs)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in a copy of the checkout in which `make` finds everything installed."""
    folder = copy_checkout(tmp_path_factory.mktemp("reader") / "captionlake")
    installed = Path(sys.prefix)
    (folder / ".venv").mkdir()
    for entry in installed.iterdir():
        (folder / ".venv" / entry.name).symlink_to(entry)
    (folder / ".venv" / ".installed").unlink(missing_ok=True)
    (folder / ".venv" / ".installed").touch()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CAPTIONLAKE_", "PY"))}
    # The installed package is the checkout that the tests run in; the copy's own code comes first.
    return Shell(folder, clean | {"PYTHONPATH": str(folder)})


def test_every_block_is_run_or_named_as_not_run() -> None:
    blocks = readme_blocks()
    fences = re.findall(r"^```(\w+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(blocks) == sum(fence in ("sh", "bash", "sql") for fence in fences)
    assert fences.count("text") == sum(block.shown is not None for block in blocks)
    assert tuple(block.text for block in blocks if block.text in NOT_RUN) == NOT_RUN


@pytest.mark.timeout(1800)
def test_the_readme_can_be_followed_from_its_first_line_to_its_last(
    spark: SparkSession, shell: Shell
) -> None:
    for block in readme_blocks():
        if block.language == "sql":
            result = query(spark, Lake(spark, str(shell.folder / "demo" / "lake")), block.text)
            printed = io.StringIO()
            write_result(result, printed, form="table", width=WIDTH)
            assert result.count() > 0, block.text
            assert block.shown in (None, printed.getvalue()), printed.getvalue()
        elif block.text not in NOT_RUN:
            shell.run(block.text)
    assert any((shell.folder / "demo" / "previews").glob("*.webp"))
