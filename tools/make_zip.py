"""Makes the archive that `spark-submit --py-files` hands to driver and executors.

`python tools/make_zip.py OUT.zip` packs the packages as they are imported: `conf` with its settings files
and prompts, `jobs`, `schemas`, `udfs` and `captionlake.py`. The same sources give the same bytes.
"""

import argparse
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("conf", "jobs", "schemas", "udfs")
SUFFIXES = (".py", ".yaml", ".txt")

EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The time that every file of the archive carries; a zip knows none before it."""


def members() -> list[Path]:
    """The files that go into the archive, sorted by name."""
    found = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.suffix in SUFFIXES]
    return sorted([ROOT / "captionlake.py", *found])


def make_zip(out: Path) -> Path:
    """Writes the archive and returns its path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w") as archive:
        for path in members():
            info = zipfile.ZipInfo(path.relative_to(ROOT).as_posix(), EARLIEST)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, path.read_bytes())
    return out


def main(argv: list[str] | None = None) -> int:
    """Makes the archive that the command line names."""
    parser = argparse.ArgumentParser(description="Make the archive for spark-submit --py-files.")
    parser.add_argument("out", type=Path, help="path of the archive, e.g. dist/captionlake.zip")
    out = make_zip(parser.parse_args(argv).out)
    print(f"{out}  {out.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
