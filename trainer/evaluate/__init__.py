"""Evaluation of trained packages, as a likelihood model and as a sampler. Independent of the training worker."""
