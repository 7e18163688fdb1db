"""Evaluation tasks: what a trained package is worth, in both views. Knows nothing of the training worker."""
