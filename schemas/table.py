"""What every table module declares: a name, columns with comments, and a key."""

from dataclasses import dataclass

from pyspark.sql.types import DataType, DoubleType, IntegerType, LongType, StringType, StructField, StructType

STRING, INT, LONG, DOUBLE = StringType(), IntegerType(), LongType(), DoubleType()

_BLOB_PROPERTIES = {
    # Without both, one row group of blobs outgrows the memory of the task that writes it.
    "parquet.block.size": str(32 * 1024 * 1024),
    "parquet.page.size.row.check.min": "1",
}


@dataclass(frozen=True)
class Table:
    """One Delta table.

    Attributes:
        name: folder of the lake, or table of the schema.
        schema: columns with their comments.
        key: columns that name a row.
        stats: columns that Delta keeps minima and maxima of, for skipping files.
        has_blobs: rows carry media of megabytes.
        status: column with the row's status, where it has one.
    """

    name: str
    schema: StructType
    key: tuple[str, ...]
    stats: tuple[str, ...]
    has_blobs: bool = False
    status: str = ""

    @property
    def table_properties(self) -> dict[str, str]:
        """Delta table properties, set when the table is created."""
        common = {
            "delta.dataSkippingStatsColumns": ",".join(self.stats),
            # Deletion vectors and auto-compaction would shut other readers out or rewrite blobs.
            "delta.enableDeletionVectors": "false",
            "delta.autoOptimize.autoCompact": "false",
        }
        return common | (_BLOB_PROPERTIES if self.has_blobs else {})


def column(name: str, kind: DataType, comment: str, *, required: bool = False) -> StructField:
    """A column with its comment; `required` columns are never null."""
    return StructField(name, kind, nullable=not required, metadata={"comment": comment})
