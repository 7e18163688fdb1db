"""One rank's process: batches, a step, the loop. Knows nothing of evaluation, MLflow or the driver."""
