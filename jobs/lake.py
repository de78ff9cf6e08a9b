"""A lake: the tables of one folder, or of one `catalog.schema`."""

import logging
import re
import time
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.errors import SchemaError, SettingsError
from schemas.table import Table
from schemas.tables import TABLES

log = logging.getLogger(__name__)

CREATION_S = 5.0
"""How long a table may take to appear that another job creates."""

_CATALOG = re.compile(r"^[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*){1,2}$")

_NO_HOST = re.compile(r"^([A-Za-z]\w*):///")


class Lake:
    """Reads and writes the tables of a lake.

    Args:
        spark: the session.
        location: a folder (any path or URI that Spark writes), or `catalog.schema`.
    """

    def __init__(self, spark: SparkSession, location: str | None) -> None:
        if not location:
            raise SettingsError("lake.output_path is not set; give --output-path FOLDER or catalog.schema")
        self.spark = spark
        self.in_catalog = "/" not in location and bool(_CATALOG.match(location))
        # SQL over files takes no relative path.
        is_relative = not self.in_catalog and ":" not in location
        place = str(Path(location).absolute()) if is_relative else location.rstrip("/")
        # As Spark writes it; Delta takes the two spellings for two places.
        self.location = _NO_HOST.sub(r"\1:/", place)

    def name_of(self, table: Table) -> str:
        """The table as SQL names it, quoted."""
        if self.in_catalog:
            return ".".join(f"`{part}`" for part in (*self.location.split("."), table.name))
        path = self.path_of(table).replace("`", "``")
        return f"delta.`{path}`"

    def path_of(self, table: Table) -> str:
        """The folder of a table of a path-based lake."""
        return f"{self.location}/{table.name}"

    def exists(self, table: Table) -> bool:
        """True when the table is there; SettingsError when nobody can tell."""
        from delta.tables import DeltaTable

        try:
            if self.in_catalog:
                return self.spark.catalog.tableExists(self.name_of(table))
            return bool(DeltaTable.isDeltaTable(self.spark, self.path_of(table)))
        except (PySparkException, Py4JError) as error:
            raise SettingsError(f"the lake {self.location} cannot be reached: {first_line(error)}") from error

    def create(self) -> None:
        """Creates the tables that are missing.

        Raises:
            SettingsError: the place cannot be written.
        """
        for table in TABLES:
            if not self.exists(table):
                self._create(table)

    def read(self, table: Table) -> DataFrame:
        """The table as it is now; columns checked against the schema.

        Raises:
            SchemaError: the table lacks a column or has one of another type.
            SettingsError: there is no such table.
        """
        reader = self.spark.read.format("delta")
        try:
            frame = reader.table(self.name_of(table)) if self.in_catalog else reader.load(self.path_of(table))
        except AnalysisException as error:
            if self.exists(table):
                raise
            raise SettingsError(
                f"there is no table {table.name} in the lake {self.location}: check lake.output_path, "
                "or fill the lake with `captionlake run`"
            ) from error
        _check_schema(table, frame)
        return frame.select(*table.schema.fieldNames())

    def delta(self, table: Table) -> Any:
        """The table as a `DeltaTable`."""
        from delta.tables import DeltaTable

        if self.in_catalog:
            return DeltaTable.forName(self.spark, self.name_of(table))
        return DeltaTable.forPath(self.spark, self.path_of(table))

    def is_noted(self, table: Table, note: str) -> bool:
        """True when one of the newest commits of the table carries the note."""
        noted = self.delta(table).history(20).where(F.col("userMetadata") == note)
        return not bool(noted.isEmpty())

    def version(self, table: Table) -> int:
        """The number of the table's newest commit; 0 is the one that created it."""
        return int(self.delta(table).history(1).select("version").collect()[0][0])

    def append(
        self, table: Table, rows: DataFrame, *, app_id: str = "", app_version: int = 0, note: str = ""
    ) -> None:
        """Appends rows in one commit; the table's history keeps `note` with it.

        With an `app_id`, Delta skips the write when the table already holds `app_version` or a newer
        one of that id, and refuses it when another writer commits the same id meanwhile.
        """
        writer = rows.select(*table.schema.fieldNames()).write.format("delta").mode("append")
        if app_id:
            writer = writer.option("txnAppId", app_id).option("txnVersion", app_version)
        if note:
            writer = writer.option("userMetadata", note)
        if self.in_catalog:
            writer.saveAsTable(self.name_of(table))
        else:
            writer.save(self.path_of(table))

    def _create(self, table: Table) -> None:
        from delta.tables import DeltaTable

        builder = DeltaTable.createIfNotExists(self.spark).addColumns(table.schema)
        if self.in_catalog:
            # The builder of open-source Delta reads no catalog before the schema.
            catalog = f"`{self.spark.catalog.currentCatalog()}`."
            builder = builder.tableName(self.name_of(table).removeprefix(catalog))
        else:
            builder = builder.location(self.path_of(table))
        for key, value in table.table_properties.items():
            builder = builder.property(key, value)
        try:
            builder.execute()
        except Exception as error:
            # Another job may be creating it at the same moment; then all is well once it is there.
            if not self._appears(table):
                raise SettingsError(
                    f"cannot create table {table.name} in the lake {self.location}: {first_line(error)}"
                ) from error
        log.info("created table=%s", self.name_of(table))

    def _appears(self, table: Table) -> bool:
        deadline = time.monotonic() + CREATION_S
        while not self.exists(table):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True


def first_line(error: BaseException) -> str:
    """The line of an error's text that says what is wrong; Spark's go on for a hundred."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    causes = [line.removeprefix(": ") for line in lines if line.startswith(": ")]
    return (causes or lines)[0]


def _check_schema(table: Table, frame: DataFrame) -> None:
    have = {field.name: field.dataType.simpleString() for field in frame.schema}
    for field in table.schema:
        want = field.dataType.simpleString()
        if have.get(field.name) != want:
            found = have.get(field.name, "missing")
            raise SchemaError(f"table {table.name}: column {field.name} must be {want}, it is {found}")
