"""Sinkhorn attention, its duals and its closure: one file per place where the n x m matrix is."""
