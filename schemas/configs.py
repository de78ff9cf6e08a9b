"""Table `configs`: what a config id stands for."""

from pyspark.sql.types import StructType, TimestampType

from schemas.table import STRING, Table, column

CONFIGS = Table(
    name="configs",
    schema=StructType(
        [
            column("config_id", STRING, "SHA-256 of config_json", required=True),
            column("kind", STRING, "the table whose rows carry the id", required=True),
            column(
                "config_json",
                STRING,
                "settings that change the output and are not defaults",
                required=True,
            ),
            column("created_at", TimestampType(), "when the config was first used, UTC", required=True),
        ]
    ),
    key=("config_id",),
    stats=("config_id", "kind"),
)
