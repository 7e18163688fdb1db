"""Sweeps: train the same model with several schedules, weightings or other method settings, and compare the scores.

A sweep is a grid over dotted paths of the trainer's configuration. Each trial is an ordinary run with its own folder
and MLflow run; Ray Tune only decides when it starts. Trials use the same random numbers and the same evaluation, so
their scores differ only because of the settings. Importing `tuning` or `tuning.space` loads neither torch nor Ray.
"""
