"""Pure functions over video clips, the engine that owns the model, and their Spark wrappers."""

CAPTIONLAKE = "udfs"
