"""Doubly-stochastic attention: train Sinkhorn Transformers, compile them with ASAP, measure both."""

__version__ = "0.1.0"
