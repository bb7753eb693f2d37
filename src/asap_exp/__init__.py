"""Train Transformers with doubly-stochastic attention, compile them with ASAP, measure both."""

__version__ = "0.1.0"
