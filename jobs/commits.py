"""Appending a chunk exactly once, whatever else is writing.

Delta remembers one number for each application id, and of two writers with the same id and number
exactly one commits. The number is taken from the newest commit that a snapshot shows for a config and
cell, so it changes with every commit, and a writer that planned on an older snapshot is refused. The
refused one looks again at what is still missing and writes that. Where a user has deleted rows, Delta
remembers a higher number than the rows show: then the deletion becomes part of the application id.
"""

import logging
import time
from collections import Counter

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from conf.errors import CommitError
from jobs.chunks import Chunk
from jobs.lake import Lake, first_line
from schemas.table import Table

log = logging.getLogger(__name__)

MAX_TRIES = 20


def commit_rows(
    lake: Lake, table: Table, rows: DataFrame, *, config: tuple[str, str], chunk: Chunk, run_id: str
) -> Counter[str]:
    """Appends those of `rows` whose keys the table does not hold, in one commit.

    Args:
        lake: where the table is.
        table: which table.
        rows: materialised rows without `run_id`, `commit_seq` and `created_at`; all of `chunk`.
        config: column and value of the config id that all rows share.
        chunk: the clips that the rows belong to.
        run_id: the run that gets the credit.

    Returns:
        The number of rows appended, by status.

    Raises:
        CommitError: other writers came first every time.
    """
    column, config_id = config
    app_id = f"{table.name}:{config_id}:{chunk.cell}"
    refused_at = -1
    for attempt in range(MAX_TRIES):
        cell = lake.read(table).where(chunk.cell_where).where(F.col(column) == config_id)
        newest, held = _newest_and_held(cell, chunk, table)
        missing = _without(rows, held, table)
        if held and missing.isEmpty():
            return Counter()
        commit_seq = max(newest + 1, time.time_ns() // 1000)
        # Refused although no other writer has come since: rows were deleted.
        era = f":{_last_deletion(lake, table)}" if newest == refused_at else ""
        refused_at = newest
        stamped = missing.withColumns(
            {
                "run_id": F.lit(run_id),
                "commit_seq": F.lit(commit_seq).cast("long"),
                "created_at": F.current_timestamp(),
            }
        )
        if _try_append(lake, table, stamped, app_id=app_id + era, app_version=newest + 1):
            owned = lake.read(table).where(chunk.where).where(F.col(column) == config_id)
            owned = owned.where((F.col("run_id") == run_id) & (F.col("commit_seq") == commit_seq))
            # Bounded by the chunk; counting them in Spark would be a query of two stages.
            counts = Counter(owned.select(table.status).toArrow()[table.status].to_pylist())
            if counts:
                return counts
        log.info("commit lost table=%s chunk=%s attempt=%d", table.name, chunk.where, attempt + 1)
    raise CommitError(f"table {table.name}, {chunk.where}: other writers came first {MAX_TRIES} times")


def _last_deletion(lake: Lake, table: Table) -> int:
    """The last commit that did more than add rows; the same for all who come after it."""
    history = lake.delta(table).history()
    appends = F.col("operation").isin("WRITE", "OPTIMIZE", "VACUUM START", "VACUUM END")
    overwrites = F.coalesce(F.col("operationParameters")["mode"] == "Overwrite", F.lit(False))
    deletion = F.max(F.when(~appends | overwrites, F.col("version")))
    # Delta forgets old commits.
    return int(history.agg(F.coalesce(deletion, F.min("version"))).collect()[0][0])


def _newest_and_held(cell: DataFrame, chunk: Chunk, table: Table) -> tuple[int, list[Row]]:
    """The newest commit of a cell and the keys held of a chunk, both of one snapshot."""
    keys = F.when(F.expr(chunk.where), F.struct(*table.key))
    row = cell.agg(F.max("commit_seq").alias("newest"), F.collect_set(keys).alias("held")).collect()[0]
    return row["newest"] or 0, row["held"]


def _without(rows: DataFrame, held: list[Row], table: Table) -> DataFrame:
    """The rows whose keys are not held."""
    if not held:
        return rows
    schema = StructType([table.schema[name] for name in table.key])
    keys = rows.sparkSession.createDataFrame(held, schema)
    return rows.join(F.broadcast(keys), list(table.key), "left_anti")


def _try_append(lake: Lake, table: Table, rows: DataFrame, *, app_id: str, app_version: int) -> bool:
    """Appends; False when another writer committed at the same time."""
    try:
        lake.append(table, rows, app_id=app_id, app_version=app_version)
    except Exception as error:
        if not is_conflict(error):
            raise
        log.info("commit conflict table=%s: %s", table.name, first_line(error))
        return False
    return True


def is_conflict(error: BaseException) -> bool:
    """True for the errors by which Delta says that another writer came first."""
    return type(error).__name__.startswith(("Concurrent", "DeltaConcurrent", "MetadataChanged")) or (
        "DELTA_CONCURRENT" in str(error)
    )
