"""The process of one rank: batches, the training step and the loop; independent of evaluation, MLflow and driver."""
