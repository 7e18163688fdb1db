"""JSON as its standard has it (RFC 8259): NaN and infinity are no numbers there, and become null."""

import json
import math
from typing import Any, cast


def json_text(values: object, indent: int | None = None, sort_keys: bool = False, compact: bool = False) -> str:
    """The JSON text of values.

    Args:
        values: mappings, sequences, text, numbers, booleans and None.
        indent: as `json.dumps`.
        sort_keys: as `json.dumps`.
        compact: whether there is no white space between the elements.
    """
    options: dict[str, Any] = {"indent": indent, "sort_keys": sort_keys, "allow_nan": False}
    if compact:
        options["separators"] = (",", ":")
    try:
        return json.dumps(values, **options)
    except ValueError:
        return json.dumps(_finite(values), **options)


def _finite(value: Any) -> Any:  # noqa: ANN401 - any value that JSON has
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in cast("dict[str, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
