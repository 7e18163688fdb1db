"""JSON without what JSON does not have."""

import json
import math
from typing import Any

import pytest

from diffusion.json_text import json_text


def test_numbers_that_are_not_finite_are_null_wherever_they_are():
    values = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, 2)}], "d": None, "e": "NaN", "f": True}
    assert json.loads(json_text(values), parse_constant=pytest.fail) == {
        "a": None, "b": [1.5, None, {"c": [None, 2]}], "d": None, "e": "NaN", "f": True,
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"sort_keys": True}, {"compact": True}])
def test_other_values_are_as_json_has_them(options):
    values = {"b": [1, 2.5, "ü"], "a": {"c": None}}
    given: dict[str, Any] = {"separators": (",", ":")} if options == {"compact": True} else options
    assert json_text(values, **options) == json.dumps(values, **given)
