"""Records as typed data, validated when read."""
