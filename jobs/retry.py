"""Job `retry`: rows with an error are tried again and get their next attempt."""

import json
import logging
import sys
from typing import Any

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.errors import SettingsError
from conf.settings import Settings
from jobs import run
from jobs.lake import Lake, first_line
from jobs.pipeline import run_stages
from jobs.report import Report
from jobs.stage import JobContext
from jobs.views import view_query
from schemas.runs import RUNS

log = logging.getLogger(__name__)

KEPT = (
    *("caption_preparation", "preview", "caption_generation", "caption_enhancement"),
    *("engine", "media", "pipeline"),
)
"""Groups of settings that a retry takes over from the run before it."""

_ERRORS = " OR ".join(
    f"{name}_status = 'error'" for name in ("window", "media", "caption", "enhanced", "preview")
)


def last_settings(spark: SparkSession, output_path: str | None) -> dict[str, Any]:
    """The settings of the newest `run` over a lake, as groups; empty where there was none."""
    newest = Lake(spark, output_path).read(RUNS).where("command = 'run'").orderBy(F.desc("started_at"))
    row = newest.select("settings_json").first()
    settings: dict[str, Any] = json.loads(row[0]) if row else {}
    return {group: values for group, values in settings.items() if group in KEPT}


def retry(spark: SparkSession, settings: Settings, *, where: str) -> Report:
    """Tries rows again.

    Args:
        spark: the session.
        settings: the settings of the run that made the rows.
        where: a condition on `window_captions`; of the rows that meet it, those with an error are tried.

    Raises:
        SettingsError: the condition cannot be read.
    """

    def choose(context: JobContext) -> None:
        try:
            view = spark.sql(view_query(context.lake))
            chosen = view.where(f"({where})").where(_ERRORS)
        except (AnalysisException, ParseException) as error:
            raise SettingsError(
                f"--where {where!r} is no condition on window_captions: {first_line(error)}"
            ) from error
        keys = [name for name in view.columns if name.endswith(("_id", "_no", "_status", "_attempt"))]
        # Fixed before the first stage writes: what it mends must not fall out of the choice.
        rows = chosen.select(*keys).collect()
        context.retry = spark.createDataFrame(rows, chosen.select(*keys).schema)
        log.info("retry where=%r rows=%d", where, len(rows))

    return run_stages(spark, settings, command="retry", kinds=run.kinds(settings), prepare=choose)


def main(argv: list[str] | None = None) -> int:
    """The command `captionlake retry`; returns the exit code."""
    from jobs.cli import main as cli

    return cli(["retry", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
