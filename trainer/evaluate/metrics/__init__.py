"""The sample view's numbers, from features alone."""
