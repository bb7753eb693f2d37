"""Own data: found at a path, described by a few lines, split by the seed where it has no splits."""
