"""The driver: one process per run, which asks Ray for workers and carries the run to its end."""
