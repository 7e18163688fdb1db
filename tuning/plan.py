"""What `--dry-run` prints: the trials, their states and the resources they request. No torch, no Ray."""

from typing import Any

from trainer.driver.plan import bundles
from trainer.run.identity import State
from tuning.mlflow_record import is_recorded
from tuning.sweep import Sweep


def plan(sweep: Sweep, states: list[State]) -> dict[str, Any]:
    """The trials with their states, and the bundles that the trials running concurrently request."""
    config = sweep.trials[0].config
    device = config.parallel.device

    def requested(device: str) -> list[dict[str, float]]:
        return [bundle for _ in range(sweep.concurrent_trials) for bundle in bundles(config, device)]

    return {
        "sweep": {
            "name": sweep.name,
            "directory": str(sweep.root),
            "digest": sweep.digest,
            "state": sweep_state(sweep, states),
        },
        "trials": [
            {"name": trial.name, "settings": trial.settings, "state": state}
            for trial, state in zip(sweep.trials, states, strict=True)
        ],
        "bundles": requested(device),
        **({"bundles_where_gpus_suffice": requested("cuda")} if device == "auto" else {}),
    }


def sweep_state(sweep: Sweep, states: list[State]) -> State:
    """`new`; `done` if all trials are done and recorded in MLflow; otherwise `resumable`."""
    if not sweep.record:
        return "new"
    return "done" if set(states) == {"done"} and is_recorded(sweep) else "resumable"


def render(described: dict[str, Any], labels: list[str]) -> str:
    """A plan as text, one line for each trial."""
    words = {"new": "would start", "resumable": "would resume", "done": "is done"}
    sweep, trials = described["sweep"], described["trials"]
    lines = [f"sweep {sweep['name']} ({sweep['digest'][:8]}) {words[sweep['state']]}; in {sweep['directory']}"]
    lines += [f"  {trial['name']}  {text}  {words[trial['state']]}" for trial, text in zip(trials, labels, strict=True)]
    return "\n".join([*lines, f"concurrently: {_count(described['bundles'])}"])


def _count(bundles: list[dict[str, float]]) -> str:
    return f"{len(bundles)} workers, each {' + '.join(f'{amount:g} {kind}' for kind, amount in bundles[0].items())}"
