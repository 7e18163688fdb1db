"""`python -m tests.integration.background`: where background tasks and others run, as JSON.

A process of its own, since Ray reads its token and its node address once, when it is imported.
"""

import json
import os

import ray

from trainer.evaluate.evaluation import as_task
from trainer.evaluate.tasks import yield_cpu
from trainer.runtime.ray_cluster import connect_ray


def task(background: bool) -> tuple[int, bool]:
    """The process, and whether it runs only when nothing else would."""
    if background:
        yield_cpu()
    return os.getpid(), os.sched_getscheduler(0) == os.SCHED_IDLE


if __name__ == "__main__":
    connect_ray()
    turns = [True, False, True, False]
    print(json.dumps([ray.get(as_task(task, 0.0, 0, background).remote(background)) for background in turns]))
