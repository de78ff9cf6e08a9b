"""Table `runs`: one row a job run."""

from pyspark.sql.types import MapType, StructType, TimestampType

from schemas.table import DOUBLE, LONG, STRING, Table, column

RUNS = Table(
    name="runs",
    schema=StructType(
        [
            column("run_id", STRING, "the run", required=True),
            column("command", STRING, "the command, e.g. run or caption", required=True),
            column("run_status", STRING, "success or error", required=True),
            column("run_error", STRING, "what stopped the run"),
            column("settings_json", STRING, "all settings, as JSON", required=True),
            column("config_ids", MapType(STRING, STRING, False), "config id by table", required=True),
            column("versions", MapType(STRING, STRING, False), "versions by program", required=True),
            column(
                "status_counts", MapType(STRING, LONG, False), "rows written, by table.status", required=True
            ),
            column("windows_per_s", DOUBLE, "windows captioned in each second of the caption stage"),
            column("tokens_per_s", DOUBLE, "tokens generated in each second of the model stages"),
            column(
                "gpu_idle_share",
                DOUBLE,
                "1 - time in the engines' steps / wall time, from 5 % to 95 % of the time between each "
                "engine's first and last answer in this run; steps are timed by the GPU, on the CPU by the "
                "host; null: not measured, as no model answered or all was over within a second",
            ),
            column("wall_s", DOUBLE, "seconds from start to end", required=True),
            column("started_at", TimestampType(), "when the run began, UTC", required=True),
            column("ended_at", TimestampType(), "when the run ended, UTC", required=True),
        ]
    ),
    key=("run_id",),
    stats=("run_id", "started_at"),
    status="run_status",
)
