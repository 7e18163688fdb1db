"""Data sets: preparing any source into memory-mapped shards, and reading them."""
