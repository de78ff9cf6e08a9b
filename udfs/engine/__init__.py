"""The engine: one process per GPU and executor that owns the model, and the clients that talk to it."""
