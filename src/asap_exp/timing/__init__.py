"""Clocks: latency, peak memory, CUDA graphs, and the accuracy check that comes before them."""
