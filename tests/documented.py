"""The commands that README and pages show, as a shell would run them."""

import re
import shlex
from dataclasses import dataclass

from tests.checkout import ROOT

_SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        text: as the page has it, line breaks included.
        environment: the variables set before it.
        words: program and arguments.
    """

    text: str
    environment: dict[str, str]
    words: list[str]


def commands(page: str) -> list[Command]:
    """The commands in the shell blocks of a page, e.g. of `docs/clusters.md`."""
    blocks = _SHELL.findall((ROOT / page).read_text(encoding="utf-8"))
    return [_command(text) for block in blocks for text in re.split(r"(?<!\\)\n", block) if text]


def cluster_commands(page: str) -> list[Command]:
    """The commands of a page that need a cluster, or build its image."""
    return [command for command in commands(page) if command.words[0] in ("docker", "spark-submit")]


def spark_submits(page: str) -> dict[str, Command]:
    """The submissions of a page, by the kind of cluster: `spark` (standalone), `yarn` and `k8s`."""
    submits = [command for command in commands(page) if command.words[0] == "spark-submit"]
    return {re.split(r"\W", one.words[one.words.index("--master") + 1])[0]: one for one in submits}


def _command(text: str) -> Command:
    words = shlex.split(text.replace("\\\n", " "))
    environment = {}
    while words and _ASSIGNMENT.match(words[0]):
        name, value = words.pop(0).split("=", 1)
        environment[name] = value
    return Command(text, environment, words)


def exported(page: str) -> dict[str, str]:
    """The variables that a page exports, e.g. in a worker's `spark-env.sh`."""
    words = [word for one in commands(page) if one.words[0] == "export" for word in one.words[1:]]
    return dict(word.split("=", 1) for word in words)
