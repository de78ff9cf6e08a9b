"""Job `run`: ingest, windows, captions, enhancements and previews as one pipeline."""

import logging
import sys
from functools import partial

from pyspark.sql import DataFrame, SparkSession

from conf.errors import SettingsError
from conf.settings import Settings
from jobs import caption, enhance, ingest, media, preview, together, windows
from jobs.pipeline import Prepare, run_stages
from jobs.report import Report
from jobs.stage import StageKind

log = logging.getLogger(__name__)


def kinds(settings: Settings) -> list[StageKind]:
    """The stages that the settings ask for; a card holds one engine, so all captions come first.

    Where captions and previews are asked for, windows that lack both get both from one pass of decoding.

    Raises:
        SettingsError: enhancement without captions.
    """
    pipeline = settings.pipeline
    if pipeline.enhance_captions and not pipeline.generate_captions:
        raise SettingsError(
            "pipeline.enhance_captions=True needs captions: add --generate-captions "
            "(captions that are there already are not made again)"
        )
    wanted = (
        (windows.STAGE, True),
        (media.STAGE, pipeline.keep_window_mp4),
        (together.STAGE, pipeline.generate_captions and settings.wants_previews),
        (caption.STAGE, pipeline.generate_captions),
        (enhance.STAGE, pipeline.enhance_captions),
        (preview.STAGE, settings.wants_previews),
    )
    return [stage for stage, is_wanted in wanted if is_wanted]


def run(spark: SparkSession, settings: Settings, clips: DataFrame | None = None) -> Report:
    """Runs the pipeline; the clips that are in the lake already are part of it.

    Args:
        spark: the session.
        settings: the settings.
        clips: clips to be added; None: those that the settings name, if any.
    """
    prepare: Prepare | None
    if clips is None:
        prepare = ingest.preparation(settings)
    else:
        prepare = partial(ingest.add_rows, rows=ingest.rows_of_table(clips))
    wanted = kinds(settings)
    for table in ("captions", "enhancements", "previews"):
        if table not in {kind.table for kind in wanted}:
            log.info("stage=%s is off", table)
    return run_stages(
        spark, settings, command="run", kinds=wanted, prepare=prepare, ingests=prepare is not None
    )


def main(argv: list[str] | None = None) -> int:
    """The command `captionlake run`; returns the exit code."""
    from jobs.cli import main as cli

    return cli(["run", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
