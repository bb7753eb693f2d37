"""Fitting sliced-dual maps to the attention layers of a frozen network."""
