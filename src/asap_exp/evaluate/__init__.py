"""Stage 3: compare a compiled model with its teacher."""
