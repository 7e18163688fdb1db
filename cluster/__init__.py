"""The job queue: a durable list of commands, run on one Ray cluster one gang at a time, by priority and then by time.

A job is a command, a snapshot of the code it was submitted with, and the resources it will ask for. The queue knows
nothing about diffusion: it learns what a job needs from `python -m trainer … --dry-run --json`, and how it ended from
its exit code.
"""
