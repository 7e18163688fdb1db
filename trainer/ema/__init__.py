"""Exponential moving averages of the weights: sharded during training, kept as snapshots, packaged afterwards."""
