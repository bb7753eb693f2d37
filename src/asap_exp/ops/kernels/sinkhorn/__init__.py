"""Sinkhorn attention, its duals and its closure: one file per location of the n x m matrix."""
