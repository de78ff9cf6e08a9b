"""The Spark session: the cluster's own where there is one, else a local one with Delta.

The only module that touches `sparkContext`.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyspark
from pyspark import SparkContext
from pyspark.sql import SparkSession

from conf.errors import SettingsError
from conf.settings import SparkSettings

log = logging.getLogger(__name__)

DELTA_PACKAGES = {
    "4.0": "io.delta:delta-spark_2.13:4.0.1",
    "4.1": "io.delta:delta-spark_4.1_2.13:4.4.0",
    "4.2": "io.delta:delta-spark_4.2_2.13:4.4.0",
}
"""The Delta that goes with a Spark, by the first two numbers of Spark's version."""

PACKAGES = ("conf", "jobs", "schemas", "udfs")

_DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
_LOCAL = {
    "spark.ui.enabled": "false",
    # Else each command leaves a folder where it is called.
    "spark.sql.warehouse.dir": str(Path(tempfile.gettempdir()) / f"captionlake-warehouse-{os.getuid()}"),
    "spark.sql.shuffle.partitions": "4",
    # Queries over a few thousand keys end before compiling them pays off; these halve the JVM's work.
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m",
    # What a page of the web interface would show, kept for a thousand queries, fills the heap.
    "spark.sql.ui.retainedExecutions": "10",
    "spark.ui.retainedJobs": "50",
    "spark.ui.retainedStages": "50",
    "spark.ui.retainedTasks": "500",
    # The default of 50 makes each commit of a small table take seconds.
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.session.timeZone": "UTC",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.log.level": "ERROR",
    "spark.ui.showConsoleProgress": "false",
}


def get_session(settings: SparkSettings) -> SparkSession:
    """Returns the session that the jobs use.

    An active session (a notebook, Databricks, a test) is used as it is; under `spark-submit` the
    session is made from the submitted configuration; else a local session with Delta is started.

    Raises:
        SettingsError: the session cannot write Delta tables.
    """
    # It prints kilobytes of JSON before every message of ours about a mistake in a statement.
    logging.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL)
    active = SparkSession.getActiveSession()
    session = active or _build(settings)
    check_delta(session)
    return session


def _build(settings: SparkSettings) -> SparkSession:
    builder = SparkSession.builder.appName("captionlake")
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = builder.master(settings.master or "local[*]")
        builder = builder.config("spark.driver.memory", settings.driver_memory)
        builder = builder.config("spark.jars.packages", delta_package(pyspark.__version__))
        for key, value in _LOCAL.items():
            builder = builder.config(key, value)
    given = (text.split("=", 1) for text in settings.properties)
    for key, value in (*_DELTA.items(), *given):
        if not _is_submitted(key.strip()):
            builder = builder.config(key.strip(), value.strip())
    return builder.getOrCreate()


def _is_submitted(key: str) -> bool:
    """Whether spark-submit was given the property, on its command line or in its defaults.

    It leaves them in the system properties of the JVM; a `SparkConf` is empty as long as no session is there.
    """
    return "PYSPARK_GATEWAY_PORT" in os.environ and bool(SparkContext.getSystemProperty(key))


def delta_package(spark_version: str) -> str:
    """The Maven coordinates of the Delta that goes with a Spark.

    >>> delta_package("4.0.5")
    'io.delta:delta-spark_2.13:4.0.1'
    """
    newest = max(DELTA_PACKAGES, key=lambda version: tuple(map(int, version.split("."))))
    return DELTA_PACKAGES.get(".".join(spark_version.split(".")[:2]), DELTA_PACKAGES[newest])


def check_delta(session: SparkSession) -> None:
    """Checks that the session writes Delta tables; SettingsError with what to submit it with."""
    extension = session.conf.get("spark.sql.extensions", "") or ""
    databricks = session.conf.get("spark.databricks.clusterUsageTags.sparkVersion", "")
    if "DeltaSparkSessionExtension" not in extension and not databricks:
        raise SettingsError(
            "the Spark session has no Delta: submit with "
            f"--packages {delta_package(session.version)} and "
            + " ".join(f"--conf {key}={value}" for key, value in _DELTA.items())
        )


def parallelism(session: SparkSession) -> int:
    """How many tasks the session runs at once."""
    try:
        return max(1, session.sparkContext.defaultParallelism)
    except Exception as error:  # Spark Connect has no context; each client library words it differently.
        log.debug("no context to ask for the parallelism: %s", error)
        return 2 * (os.cpu_count() or 1)


def gpu_count(session: SparkSession) -> int:
    """How many GPUs the executors own; 0 where Spark knows of none."""
    per_executor = int(float(session.conf.get("spark.executor.resource.gpu.amount", "0") or 0))
    executors = int(session.conf.get("spark.executor.instances", "1") or 1)
    return per_executor * executors


def check_gpu_slots(session: SparkSession) -> None:
    """Checks that as many tasks as cores feed a card, and that no task runs twice.

    Raises:
        SettingsError: names the Spark setting, its value and the one to give.
    """
    problem = gpu_slots_problem(lambda key, default: session.conf.get(key, default) or default)
    if problem is not None:
        raise SettingsError(problem)


def gpu_slots_problem(get: Callable[[str, str], str]) -> str | None:
    """What is wrong with the slots that Spark properties give to GPUs; None where nothing is.

    Args:
        get: a property's value, or the default that is given.
    """
    if get("spark.speculation", "false") == "true":
        return "spark.speculation=true runs slow tasks twice, and the model with them: set it to false"
    gpus = float(get("spark.executor.resource.gpu.amount", "0"))
    cores = float(get("spark.executor.cores", "1"))
    per_task = float(get("spark.task.resource.gpu.amount", "1"))
    if gpus and gpus / per_task < cores:
        return (
            f"spark.task.resource.gpu.amount={per_task:g} lets {gpus / per_task:g} of an executor's "
            f"{cores:g} cores feed its {gpus:g} GPU: set it to {gpus / cores:g} (GPUs / cores) or less"
        )
    return None


def check_packages(session: SparkSession) -> None:
    """Checks that driver and executors import our packages and not others of the same names.

    Raises:
        SettingsError: names the package, where it was found and how to mend it.
    """
    names, slots = PACKAGES, parallelism(session)

    def found(_: object) -> "list[str]":
        import importlib
        import socket

        problems = []
        for name in names:
            try:
                module = importlib.import_module(name)
            except ImportError as error:
                problems.append(f"{name} is missing on {socket.gethostname()}: {error}")
                continue
            doc = module.__doc__ or ""
            if getattr(module, "CAPTIONLAKE", None) != name:
                place = getattr(module, "__file__", None) or list(getattr(module, "__path__", []))
                problems.append(f"{name} on {socket.gethostname()} is another package: {place} {doc[:40]!r}")
        return problems

    problems = found(None)
    if not problems:
        frame = session.range(slots, numPartitions=slots)

        def check(batches: Any) -> Any:
            import pandas as pd

            for _ in batches:
                pass
            yield pd.DataFrame({"problem": found(None)}, dtype="object")

        problems = [row.problem for row in frame.mapInPandas(check, "problem string").distinct().collect()]
    if problems:
        raise SettingsError(
            "; ".join(problems)
            + "; put Captionlake first on PYTHONPATH, or submit it with --py-files, on driver and executors"
        )


def source_root() -> Path:
    """The folder that holds our packages: of a checkout, an installation or a zip."""
    return Path(__file__).resolve().parent.parent


@contextmanager
def small_batches(session: SparkSession) -> Iterator[None]:
    """Keeps Arrow batches small while our UDFs run: a row can hold a clip of many megabytes."""
    key = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = session.conf.get(key, None)
    session.conf.set(key, "8")
    try:
        yield
    finally:
        session.conf.unset(key) if before is None else session.conf.set(key, before)
