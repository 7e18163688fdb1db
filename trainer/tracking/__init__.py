"""MLflow runs, metrics and files. Only this package and `registry` use MLflow."""
