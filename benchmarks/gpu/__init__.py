"""The parts of `benchmarks.gpu_captions`."""
