"""Stage 1: train a model."""
