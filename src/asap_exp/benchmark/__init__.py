"""The speed of the attention operators alone."""
