"""Measurements: latency, peak memory, CUDA graphs, and the accuracy check that precedes them."""
