"""Averages of the weights: kept sharded in training, as snapshots, and made into packages afterwards."""
