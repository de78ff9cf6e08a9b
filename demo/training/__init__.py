"""How the demo's checkpoints are trained: `python -m demo.training --help`."""
