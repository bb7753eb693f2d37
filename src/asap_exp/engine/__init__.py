"""Training loop: module, checkpoints, callbacks."""
