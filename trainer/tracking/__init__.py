"""MLflow: runs, metrics and files. With `registry`, all that knows it."""
