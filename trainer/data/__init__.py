"""Image data: sources, the prepared folder that workers map, and its fingerprint."""
