"""Data sets: preparing any source as memory-mapped shards, and reading the shards."""
