"""Records as typed data: what a stage wrote, checked when it is read."""
