"""Where the queue has placed a run."""

import json

import pytest

from trainer.driver.placement import PLACEMENT_VARIABLE, worker_selectors

PLACED = json.dumps({"driver": "n0", "bundles": ["n1", "n1", "n2"]})


def test_each_worker_goes_to_its_node(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PLACEMENT_VARIABLE, PLACED)
    assert worker_selectors(3) == [{"ray.io/node-id": node} for node in ("n1", "n1", "n2")]


@pytest.mark.parametrize("workers", [2, 4, (1, 3), (3, 3)])
def test_what_was_placed_for_others_is_left_to_ray(monkeypatch: pytest.MonkeyPatch, workers):
    monkeypatch.setenv(PLACEMENT_VARIABLE, PLACED)
    assert worker_selectors(workers) is None


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "nonsense", '{"bundles": 1}', '{"bundles": null}', "null", "3"])
def test_without_a_placement_ray_places(monkeypatch: pytest.MonkeyPatch, text: str | None):
    monkeypatch.delenv(PLACEMENT_VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(PLACEMENT_VARIABLE, text)
    assert worker_selectors(1) is None
