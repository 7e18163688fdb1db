"""Sizes that the command line checks before torch is loaded."""

FEATURES = 64
"""Dimensions of the classifier's features."""

MINIMUM_IMAGES = FEATURES + 1
"""A covariance of FEATURES dimensions is singular with fewer images."""
