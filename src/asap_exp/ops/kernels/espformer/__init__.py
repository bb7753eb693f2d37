"""ESPFormer's plan: the sorts of slices, the weights of the slices, and all gradients."""
