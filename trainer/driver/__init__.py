"""The driver's process: one for each run, which asks Ray for workers and brings the run to its end."""
