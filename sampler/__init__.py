"""Sampling from registered models: a step-level batching engine, a registry client and a Ray Serve application.

Only `service.py` imports Ray and only `models.py` imports MLflow; importing `sampler` loads neither, nor torch. It only
sets their defaults in every process that samples: no telemetry, no pickle, and short timeouts for a registry.
"""

import os

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
