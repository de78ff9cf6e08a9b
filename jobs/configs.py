"""Writing down what config ids stand for."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

from pyspark.sql import functions as F

from conf.identity import ConfigIdentity
from jobs.commits import is_conflict
from jobs.lake import Lake
from schemas.configs import CONFIGS

log = logging.getLogger(__name__)


def record_configs(lake: Lake, configs: Sequence[ConfigIdentity]) -> None:
    """Adds configs to `configs` unless they are there; of two writers at once one does."""
    unique = {config.config_id: config for config in configs}
    if not unique:
        return
    held = lake.read(CONFIGS).select("config_id").where(F.col("config_id").isin(*unique)).collect()
    known = {row.config_id for row in held}
    new = [config for config in unique.values() if config.config_id not in known]
    if new:
        # Each takes a commit of its own, and a commit takes a second.
        with ThreadPoolExecutor(len(new)) as pool:
            list(pool.map(partial(_record, lake), new))


def _record(lake: Lake, config: ConfigIdentity) -> None:
    row = (config.config_id, config.kind, config.canonical, datetime.now(UTC))
    try:
        rows = lake.spark.createDataFrame([row], CONFIGS.schema)
        lake.append(CONFIGS, rows, app_id=f"configs:{config.config_id}", app_version=1)
    except Exception as error:
        if not is_conflict(error):
            raise
        log.info("config %s was written by another job", config.config_id)
