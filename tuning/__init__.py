"""Sweeps: the same run under several schedules, weightings or other method settings, compared by its scores.

A sweep is a grid over dotted paths of the trainer's configuration. Each trial is a run like any other, in its own
folder and MLflow run; Ray Tune only decides when it starts. Trials share their random numbers and are measured alike:
what differs between their scores is the setting. Importing `tuning` or `tuning.space` loads neither torch nor Ray.
"""
