"""Benchmarks: the peer's way beside ours in one run. They print tables and write JSON into `results/`."""
