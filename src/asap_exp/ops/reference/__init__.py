"""The definition of every operator: plain PyTorch, float32 or float64, autograd does the rest."""
