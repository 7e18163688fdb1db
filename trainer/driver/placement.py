"""Where the queue has placed a run: the nodes that its workers are to use, which Ray Train is told as label selectors.

The contract is in docs/queue.md: DUALVIEW_PLACEMENT is a JSON object whose `bundles` are ids of Ray nodes, one for each
worker.
"""

import json
import os
from typing import Any

NODE_LABEL = "ray.io/node-id"
PLACEMENT_VARIABLE = "DUALVIEW_PLACEMENT"


def worker_selectors(workers: int | tuple[int, int]) -> list[dict[str, str]] | None:
    """A label selector for each worker, by rank; None where the queue has not placed them.

    A run whose number of workers may change is placed by Ray, since the node of a further worker is not known. So is
    one whose bundles are not its workers, as those of a sweep's trials are not.

    Args:
        workers: how many, or the least and the most.
    """
    try:
        placement: Any = json.loads(os.environ.get(PLACEMENT_VARIABLE) or "{}")
        nodes = placement["bundles"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(workers, int) or not isinstance(nodes, list) or len(nodes) != workers:
        return None
    return [{NODE_LABEL: str(node)} for node in nodes]
