"""What a sweep would do, without doing it. No torch, no Ray."""

from typing import Any

from trainer.driver.plan import bundles
from trainer.run.identity import State
from tuning.mlflow_record import recorded
from tuning.sweep import Sweep


def plan(sweep: Sweep, states: list[State]) -> dict[str, Any]:
    """The trials with their states, and the bundles that the trials running at one time ask for."""
    config = sweep.trials[0].config
    device = config.parallel.device

    def asked(device: str) -> list[dict[str, float]]:
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
        "bundles": asked(device),
        **({"bundles_where_gpus_suffice": asked("cuda")} if device == "auto" else {}),
    }


def sweep_state(sweep: Sweep, states: list[State]) -> State:
    """Whether the sweep is new, has something left to do, or is done and in MLflow."""
    if not sweep.record:
        return "new"
    return "done" if set(states) == {"done"} and recorded(sweep) else "resumable"


def render(described: dict[str, Any], labels: list[str]) -> str:
    """A plan for people: a line a trial."""
    words = {"new": "would start", "resumable": "would go on", "done": "is done"}
    sweep, trials = described["sweep"], described["trials"]
    lines = [f"sweep {sweep['name']} ({sweep['digest'][:8]}) {words[sweep['state']]}; in {sweep['directory']}"]
    lines += [f"  {trial['name']}  {text}  {words[trial['state']]}" for trial, text in zip(trials, labels, strict=True)]
    return "\n".join([*lines, f"at one time: {_count(described['bundles'])}"])


def _count(asked: list[dict[str, float]]) -> str:
    return f"{len(asked)} workers, each {' + '.join(f'{amount:g} {kind}' for kind, amount in asked[0].items())}"
