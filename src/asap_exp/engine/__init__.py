"""The training loop: module, checkpoints, callbacks."""
