"""The model registry: versions, aliases, and the gate between them. Only this package and `tracking` use MLflow."""
