"""Commands of Captionlake one after the other in one process, and so in one Spark session.

`python -m tests.cluster.commands OUT.json COMMANDS_AS_JSON` writes the exit code of each and what it printed.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession

import captionlake


def main(out: Path, commands: list[list[str]]) -> None:
    """Runs the commands."""
    results = []
    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = captionlake.main(command)
        results.append({"code": code, "printed": printed.getvalue()})
    session = SparkSession.getActiveSession()
    assert session is not None
    jars = session.conf.get("spark.jars.packages")
    versions = {"pyspark": pyspark.__version__, "spark": session.version, "delta": jars}
    out.write_text(json.dumps({"versions": versions, "results": results}))
    session.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
