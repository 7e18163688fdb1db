"""The job queue: a durable list of commands, run on one Ray cluster one gang at a time, by priority and then by time.

A job is a command, a snapshot of the code it was submitted with, and the resources it will ask for. The queue knows no
diffusion: it reads `python -m trainer … --dry-run --json` to learn what a job needs, and its exit code to learn how it
ended.
"""
