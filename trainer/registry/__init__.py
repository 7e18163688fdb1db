"""The model registry: versions, aliases, and the gate between the two. With `tracking`, all that knows MLflow."""
