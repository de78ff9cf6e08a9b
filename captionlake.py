"""Captionlake's front door: the version and the command line's entry point."""

import sys

__version__ = "0.1.0"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    from jobs.cli import main as cli_main

    return cli_main(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
