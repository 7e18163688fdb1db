"""Screens schedules by a trained model's denoising curve, without training: a table and a plot."""

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from diffusion.bounded import read_bounded
from diffusion.config import ProcessConfig
from diffusion.config.errors import describe
from diffusion.likelihood.screening import DenoisingCurve, ScreeningResult, screen
from diffusion.process.sde import make_process
from trainer.config.load import apply_sets
from trainer.errors import InputError
from trainer.files import MAX_JSON_BYTES

SCHEDULES = ("linear", "scaled_linear", "quadratic", "cosine", "sigmoid", "laplace", "edm", "geometric")
STEPS = (100, 250, 1000)
ADAPTER: TypeAdapter[ProcessConfig] = TypeAdapter(ProcessConfig)


@dataclass(frozen=True)
class Candidate:
    """A process and its screening result; where the curve cannot predict one, `problem` says why."""

    label: str
    process: ProcessConfig
    screened: ScreeningResult | None
    problem: str


def read_curve(path: Path) -> DenoisingCurve:
    """Read the curve of a `denoising.json`, or of a folder that holds one.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    file = path / "denoising.json" if path.is_dir() else path
    try:
        return DenoisingCurve.from_json(read_bounded(file, MAX_JSON_BYTES))
    except OSError as error:
        raise InputError(
            f"CURVE = {file}: {error.strerror}; allowed: denoising.json of "
            "`python -m trainer.evaluate MODEL --metrics denoising`"
        ) from None
    except ValueError as error:
        raise InputError(f"CURVE = {file}: {str(error).splitlines()[0]}") from None


def candidate_processes(
    curve: DenoisingCurve,
    kinds: list[str] | None,
    schedules: list[str] | None,
    steps: list[int] | None,
    variance: str,
) -> list[tuple[str, ProcessConfig]]:
    """The processes to screen, with labels: each kind of process with each schedule and each number of steps.

    Args:
        curve: its range of log-SNR is that of continuous time, and of schedules without ends of their own.
        kinds: values of `process.kind`; None for `ddpm` alone.
        schedules: kinds, or YAML mappings such as `{kind: cosine, s: 0.02}`; None for every kind with its defaults.
        steps: numbers of steps of the chain; None for STEPS.
        variance: `process.reverse_variance`.

    Raises:
        InputError: a schedule is invalid; names the setting and what is allowed.
    """
    processes = list[tuple[str, ProcessConfig]]()
    ends = {"log_snr_max": float(curve.log_snr[0]), "log_snr_min": float(curve.log_snr[-1])}
    shared = {"reverse_variance": variance, **ends}
    for kind, spelled, count in itertools.product(kinds or ("ddpm",), schedules or SCHEDULES, steps or STEPS):
        values = {"kind": kind, "num_train_timesteps": count, "schedule": _schedule(spelled), **shared}
        try:
            process = ADAPTER.validate_json(json.dumps(values))
        except ValidationError as error:
            if schedules:
                raise InputError(f"--schedule {spelled}: {describe(error, ProcessConfig)}") from None
            continue
        processes.append((f"{'' if kind == 'ddpm' else f'{kind} '}{spelled}, T = {count}", process))
    return processes


def _schedule(spelled: str) -> dict[str, Any]:
    """The settings of a schedule given as a kind or as a YAML mapping."""
    try:
        value = apply_sets({}, [f"schedule={spelled}"])["schedule"]
    except InputError:
        raise InputError(
            f"--schedule {spelled}: not YAML; allowed: a kind, or a mapping such as {{kind: cosine}}"
        ) from None
    schedule: dict[str, Any] = value if isinstance(value, dict) else {"kind": spelled}
    if schedule.get("kind") == "learned":
        raise InputError(
            "--schedule learned: is trained together with its network; allowed: schedules that are fixed beforehand"
        )
    return schedule


def screen_all(curve: DenoisingCurve, processes: list[tuple[str, ProcessConfig]]) -> list[Candidate]:
    """Screen each process: the smallest discretisation gap first, those without a result last."""
    candidates = list[Candidate]()
    for label, config in processes:
        try:
            candidates.append(Candidate(label, config, screen(curve, make_process(config)), ""))
        except ValueError as error:
            candidates.append(Candidate(label, config, None, str(error)))
    return sorted(candidates, key=_order)


def _order(candidate: Candidate) -> tuple[bool, float]:
    result = candidate.screened
    return result is None, 0.0 if result is None else result.gap.value


def as_json(candidates: list[Candidate]) -> list[dict[str, Any]]:
    """The candidates as JSON values."""
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
    """Print the results as a table in bits per dimension."""
    table = Table(box=None, pad_edge=False)
    for heading in ("schedule", "log-SNR", "continuous bound", "chain's diffusion term", "discretisation gap"):
        table.add_column(heading)
    for each in candidates:
        result = each.screened
        if result is None:
            continue
        low, high = result.log_snr
        bits = [
            f"{e.value:.4f} ± {e.standard_error:.4f}" for e in (result.continuous_vlb, result.diffusion, result.gap)
        ]
        table.add_row(each.label, f"{low:.1f} to {high:.1f}", *bits)
    console.print(table)
    for each in candidates:
        if each.problem:
            console.print(f"{each.label}: {each.problem}", markup=False, soft_wrap=True)
    console.print(
        f"bits/dim, smallest gap first, all of the same network (package {curve.package_sha256[:8]}, {curve.images} "
        "held-out images). Training with another schedule would give another network. Sample quality is not predicted.",
        markup=False,
        soft_wrap=True,
    )


def draw(curve: DenoisingCurve, candidates: list[Candidate], path: Path) -> None:
    """Plot the curve, and the gap of each schedule against the number of steps, to a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from trainer.evaluate.report.panels import draw_curve

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_curve(left, curve)
    lines = dict[str, list[tuple[int, float, float]]]()
    for each in candidates:
        if each.screened:
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
