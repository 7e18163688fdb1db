"""Checks before any worker starts, and the plan that `--dry-run` prints. Imports neither torch nor Ray."""

from pathlib import Path
from typing import Any

import yaml

from diffusion.config import Autoguidance
from trainer.config.run_config import RunConfig
from trainer.data.sources import check_source
from trainer.errors import InputError
from trainer.run.identity import Resolved, resolve_run


def check(config: RunConfig) -> Resolved:
    """Check all that can be checked without data; returns the run's state and the configuration to go on with.

    Raises:
        InputError: data or a guide that is not there, or a run name taken by another method.
    """
    check_source(config.data)
    guidance = config.evaluation.guidance
    if isinstance(guidance, Autoguidance) and not (guidance.guide.startswith("/") and Path(guidance.guide).is_dir()):
        raise InputError(
            f"evaluation.guidance.guide = {guidance.guide!r}: not the absolute path of a folder; allowed: that of a "
            "package folder that every node sees"
        )
    return resolve_run(config)


def bundles(config: RunConfig, device: str) -> list[dict[str, float]]:
    """The smallest resources that the run can start with: one Ray resource bundle per worker."""
    bundle = {"CPU": config.parallel.cpus_per_worker}
    if device == "cuda":
        bundle["GPU"] = 1.0
    return [dict(bundle) for _ in range(config.parallel.min_workers)]


def plan(resolved: Resolved) -> dict[str, Any]:
    """The resolved configuration, its identity, DeepSpeed's configuration and the resource bundles.

    DeepSpeed's is None where it is not used, and else as on GPUs: on CPUs `exchange.py` may average the gradients.
    """
    from trainer.worker.deepspeed_config import deepspeed_config, is_alone

    config, notes = resolved.config, list(resolved.notes)
    workers = config.parallel.max_workers
    run = {"name": config.run.name, "directory": str(resolved.paths.root), "state": resolved.state}
    return {
        "run": {**run, **({"notes": notes} if notes else {})},
        "config_sha256": config.config_sha256,
        "method_sha256": config.method_sha256,
        "config": config.model_dump(mode="json"),
        "deepspeed": None if is_alone(config, workers) else deepspeed_config(config, workers),
        "device": config.parallel.device,
        "bundles": bundles(config, config.parallel.device),
        **({"bundles_where_gpus_suffice": bundles(config, "cuda")} if config.parallel.device == "auto" else {}),
    }


def render(described: dict[str, Any]) -> str:
    """A plan as YAML, with a comment on the run's state."""
    states = {"new": "would start", "resumable": "would resume", "done": "is done; nothing would run"}
    run = described["run"]
    return f"# {run['name']} {states[run['state']]}\n" + yaml.safe_dump(described, sort_keys=False).rstrip()
