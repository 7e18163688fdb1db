"""Joining a cluster: what workers must be told to import this checkout."""

import pytest

from trainer.run.provenance import ROOT
from trainer.runtime import ray_cluster


@pytest.mark.parametrize(
    ("variables", "elsewhere", "told"),
    [
        ({"RAY_ADDRESS": "127.0.0.1:1"}, True, True),
        ({"RAY_ADDRESS": "127.0.0.1:1"}, False, False),
        ({}, True, False),
        ({"RAY_ADDRESS": "auto", "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, True, False),
    ],
)
def test_a_cluster_that_was_started_elsewhere_is_told_where_this_checkout_is(
    monkeypatch, tmp_path, variables, elsewhere, told
):
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path if elsewhere else ROOT)
    assert ray_cluster._checkout() == ({"env_vars": {"PYTHONPATH": str(ROOT)}} if told else None)
