"""Schedules screened from one trained run's curve, beside runs that were really trained with them.

    python -m tests.benchmarks.screening --storage /tmp/screening --steps 600

Trains digits with each schedule (a minute or two each on two cores), screens all from the curve of the first, and
prints the chain's diffusion term and the continuous bound, predicted and measured, in bits/dim.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from diffusion.config import ProcessConfig
from diffusion.likelihood.screening import DenoisingCurve, screen
from diffusion.process.sde import make_process

SCHEDULES = ("cosine", "linear", "quadratic", "sigmoid")


def trained(schedule: str, storage: Path, steps: int) -> Path:
    """The results of a run with this schedule, trained unless it is there."""
    settings = {
        "run.storage": storage,
        "run.name": f"screening-{schedule}",
        "run.register_as": "null",
        "process.schedule.kind": schedule,
        "training.steps": steps,
        "evaluation.metrics": "[vlb, continuous_vlb, denoising]",
    }
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    subprocess.run([sys.executable, "-m", "trainer", "--config", "configs/digits.yaml", *sets], check=True)
    return storage / "digits" / f"screening-{schedule}" / "results"


def main() -> None:
    """Train what is not trained, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, required=True, help="an absolute folder for the runs")
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    options = parser.parse_args()
    results = {name: trained(name, options.storage, options.steps) for name in SCHEDULES}
    adapter: TypeAdapter[ProcessConfig] = TypeAdapter(ProcessConfig)
    curve = DenoisingCurve.from_json((results[SCHEDULES[0]] / "denoising.json").read_text())
    print(f"predicted from the curve of {SCHEDULES[0]}; measured in the run of each schedule; bits/dim")
    print("schedule     diffusion term: predicted, measured, error      continuous bound: predicted, measured, error")
    for name, folder in results.items():
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        config = json.loads((folder.parent / "run.json").read_text())["config"]
        found = screen(curve, make_process(adapter.validate_json(json.dumps(config["process"]))))
        cells = []
        for metric, predicted in (("vlb_diffusion_bpd", found.diffusion), ("continuous_vlb_bpd", found.continuous_vlb)):
            value, error = summary[metric], summary[f"{metric}_se"]
            cells.append(
                f"{predicted.value:.4f} +- {predicted.standard_error:.4f}, {value:.4f} +- {error:.4f}, "
                f"{predicted.value - value:+.4f}"
            )
        print(f"{name:12} {cells[0]}   {cells[1]}")


if __name__ == "__main__":
    main()
