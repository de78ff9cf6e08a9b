"""The jobs: Spark sessions, table I/O, composition of DataFrames and the command line."""

CAPTIONLAKE = "jobs"
