"""Writes the pages of `docs/` that are made from the code.

`python tools/make_docs.py` writes `docs/settings.md` and `docs/tables.md`; with `--check` it only says
whether they are up to date.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.settings_page import settings_page
from tools.tables_page import tables_page

DOCS = Path(__file__).resolve().parent.parent / "docs"


def pages() -> dict[str, str]:
    """The text of every page, by file name."""
    return {"settings.md": settings_page(), "tables.md": tables_page()}


def outdated(folder: Path = DOCS) -> list[str]:
    """Names of the pages in `folder` that are missing or differ from what the code says."""
    return [
        name
        for name, text in pages().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def main(argv: list[str] | None = None) -> int:
    """Writes the pages; with `--check` returns 1 when a page on disk differs."""
    parser = argparse.ArgumentParser(description="Write the pages of docs/ that are made from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is out of date")
    if parser.parse_args(argv).check:
        names = outdated()
        for name in names:
            print(f"docs/{name} is out of date: run make docs", file=sys.stderr)
        return 1 if names else 0
    DOCS.mkdir(exist_ok=True)
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(f"docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
