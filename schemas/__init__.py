"""The tables: one module each with columns, comments and key. The statuses import no Spark."""

CAPTIONLAKE = "schemas"
