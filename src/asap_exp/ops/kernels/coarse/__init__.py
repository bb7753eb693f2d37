"""Coarse attention: the duals of a subset, their extension to all tokens, and the gradients."""
