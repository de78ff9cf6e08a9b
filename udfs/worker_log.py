"""Logging of Python workers: one line per event on stderr, which Spark keeps with the executor's logs."""

import logging
import sys

NAMES = ("conf", "jobs", "schemas", "udfs")
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def log_to_stderr(level: int) -> None:
    """Sends the log lines of our packages to stderr; calling it again changes only the level."""
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not logger.handlers:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
            logger.addHandler(handler)
            logger.propagate = False
