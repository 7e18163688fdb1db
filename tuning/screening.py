"""Schedules screened by a trained model's denoising curve: a table and a picture, without training."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from diffusion.config import DdpmProcess, ProcessConfig
from diffusion.screening import DenoisingCurve, Screened, screen
from diffusion.sde import make_process
from trainer.settings import InputError

SCHEDULES = ("linear", "scaled_linear", "quadratic", "cosine", "sigmoid", "laplace", "edm")
STEPS = (100, 250, 1000)
ADAPTER: TypeAdapter[ProcessConfig] = TypeAdapter(ProcessConfig)


@dataclass(frozen=True)
class Candidate:
    """A process and what the curve says of it; `problem` where it says nothing."""

    label: str
    process: ProcessConfig
    screened: Screened | None
    problem: str


def read_curve(path: Path) -> DenoisingCurve:
    """The curve of `denoising.json`, or of the folder that holds it.

    Raises:
        InputError: there is none.
    """
    file = path / "denoising.json" if path.is_dir() else path
    try:
        return DenoisingCurve.from_json(file.read_text())
    except OSError as error:
        raise InputError(
            f"CURVE = {file}: {error.strerror}; allowed: denoising.json of "
            "`python -m trainer.evaluate MODEL --metrics denoising`"
        ) from None
    except ValueError as error:
        raise InputError(f"CURVE = {file}: {str(error).splitlines()[0]}") from None


def processes(schedules: list[str] | None, steps: list[int] | None, variance: str) -> list[tuple[str, ProcessConfig]]:
    """The chains to screen: each schedule with each number of steps.

    Args:
        schedules: names, or YAML mappings such as `{kind: cosine, s: 0.02}`; None for every kind with its defaults.
        steps: numbers of steps; None for STEPS.
        variance: `process.reverse_variance`.

    Raises:
        InputError: naming a setting and what is allowed.
    """
    found = list[tuple[str, ProcessConfig]]()
    for spelled in schedules or SCHEDULES:
        parsed: Any = yaml.safe_load(spelled)
        schedule: dict[str, Any] = parsed if isinstance(parsed, dict) else {"kind": spelled}
        for count in steps or STEPS:
            values = {"kind": "ddpm", "num_train_timesteps": count, "reverse_variance": variance, "schedule": schedule}
            try:
                process = ADAPTER.validate_json(json.dumps(values))
                found.append((f"{spelled}, T = {count}", process))
            except ValidationError as error:
                if schedules:
                    problem = error.errors()[0]
                    raise InputError(f"--schedule {spelled}: {problem['msg'].removeprefix('Value error, ')}") from None
    return found


def screened(curve: DenoisingCurve, chosen: list[tuple[str, ProcessConfig]]) -> list[Candidate]:
    """What the curve says of each, by the chain's predicted diffusion term; those it says nothing of are last."""
    candidates = list[Candidate]()
    for label, config in chosen:
        try:
            candidates.append(Candidate(label, config, screen(curve, make_process(config)), ""))
        except ValueError as error:
            candidates.append(Candidate(label, config, None, str(error)))
    return sorted(candidates, key=_order)


def _order(candidate: Candidate) -> tuple[bool, float]:
    found = candidate.screened
    return found is None, 0.0 if found is None else found.gap.value


def as_json(candidates: list[Candidate]) -> list[dict[str, Any]]:
    """All of it, for programs."""
    return [
        {
            "label": each.label,
            "process": each.process.model_dump(mode="json"),
            "screened": asdict(each.screened) if each.screened else None,
            "problem": each.problem or None,
        }
        for each in candidates
    ]


def show(curve: DenoisingCurve, candidates: list[Candidate], console: Console) -> None:
    """A table in bits per dimension."""
    table = Table(box=None, pad_edge=False)
    for heading in ("schedule", "log-SNR", "continuous bound", "chain's diffusion term", "discretisation gap"):
        table.add_column(heading)
    for each in candidates:
        found = each.screened
        if found is None:
            continue
        low, high = found.log_snr
        bits = [f"{e.value:.4f} ± {e.standard_error:.4f}" for e in (found.continuous_vlb, found.diffusion, found.gap)]
        table.add_row(each.label, f"{low:.1f} to {high:.1f}", *bits)
    console.print(table)
    for each in candidates:
        if each.problem:
            console.print(f"{each.label}: {each.problem}", markup=False, soft_wrap=True)
    console.print(
        f"bits/dim, smallest gap first, of one network (package {curve.package_sha256[:8]}, {curve.images} held-out "
        "images). A model trained with another schedule is another network. Nothing is said of samples.",
        markup=False,
        soft_wrap=True,
    )


def draw(curve: DenoisingCurve, candidates: list[Candidate], path: Path) -> None:
    """The curve, and the gap of each schedule against its steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from trainer.evaluate.panels import draw_curve

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_curve(left, curve)
    lines = dict[str, list[tuple[int, float, float]]]()
    for each in candidates:
        if each.screened and isinstance(each.process, DdpmProcess):
            gap, name = each.screened.gap, each.label.rpartition(", T = ")[0]
            lines.setdefault(name, []).append((each.process.num_train_timesteps, gap.value, gap.standard_error))
    for name, points in lines.items():
        steps, gaps, errors = zip(*sorted(points), strict=True)
        right.errorbar(steps, gaps, [2 * error for error in errors], marker="o", capsize=3, label=name)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("steps of the chain")
    right.set_ylabel("discretisation gap, bits/dim")
    right.spines[["top", "right"]].set_visible(False)
    if lines:
        right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
