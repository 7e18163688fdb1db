"""`python -m docs.plots`: draw the pictures of docs/theory.md from the code that they are about.

Everything is computed in float64 from fixed seeds, so the same versions draw the same files.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from diffusion import config as configs
from diffusion.config import ScheduleConfig, SolverConfig, VpProcess, WeightingConfig
from diffusion.gaussian import MixtureData
from diffusion.prediction import Parameterization
from diffusion.process.make_schedule import make_schedule
from diffusion.process.schedule import Schedule
from diffusion.process.sde import Process, make_process
from diffusion.solvers import ImageNoise, make_solver
from diffusion.verify.claims.orders import exact_ends, sampled_ends
from diffusion.verify.claims.sampling import DoubleNoise
from diffusion.weighting import weights

# Okabe & Ito's palette, told apart by colour-blind readers as well
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#808080",
)  # fmt: skip
DATA = MixtureData()
HIGHEST, LOWEST = 13.3, -13.3
STYLE = {
    "font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 1.8, "savefig.dpi": 100,
}  # fmt: skip

SCHEDULES: tuple[tuple[str, ScheduleConfig, str, str], ...] = (
    ("laplace", configs.LaplaceSchedule(), PURPLE, "-"),
    ("edm", configs.EdmSchedule(), ORANGE, "-"),
    ("geometric (learned starts here)", configs.GeometricSchedule(), BLACK, "-"),
    ("cosine", configs.CosineSchedule(), BLUE, "-"),
    ("scaled_linear", configs.ScaledLinearSchedule(), SKY, "--"),
    ("quadratic", configs.QuadraticSchedule(), GREEN, "-."),
    ("linear", configs.LinearSchedule(), VERMILION, "-"),
    ("sigmoid", configs.SigmoidSchedule(), GREY, ":"),
)
WEIGHTINGS: tuple[tuple[str, WeightingConfig, ScheduleConfig, str, str], ...] = (
    ("vlb = likelihood, cosine schedule", configs.VlbWeighting(), configs.CosineSchedule(), PURPLE, "-"),
    ("vlb = likelihood, linear schedule", configs.VlbWeighting(), configs.LinearSchedule(), VERMILION, "-"),
    ("simple = snr; adaptive starts here", configs.SimpleWeighting(), configs.LinearSchedule(), BLACK, "-"),
    ("edm, sigma_data 0.5", configs.EdmWeighting(), configs.LinearSchedule(), ORANGE, "-"),
    ("sigmoid, bias 2", configs.SigmoidWeighting(), configs.LinearSchedule(), SKY, "-"),
    ("min_snr, gamma 5", configs.MinSnrWeighting(), configs.LinearSchedule(), BLUE, "--"),
    ("p2, k 1, gamma 1", configs.P2Weighting(), configs.LinearSchedule(), GREEN, "-."),
)
SOLVERS: tuple[tuple[SolverConfig, int, str, str], ...] = (
    (configs.Euler(clip_x0=False, denoise=False), 1, BLACK, "o"),
    (configs.Ddim(clip_x0=False, denoise=False), 1, ORANGE, "s"),
    (configs.Heun(clip_x0=False, denoise=False), 2, SKY, "^"),
    (configs.Dpmpp2M(clip_x0=False, denoise=False, spacing="log_snr"), 1, BLUE, "v"),
    (configs.Dpmpp3M(clip_x0=False, denoise=False, spacing="log_snr"), 1, VERMILION, "D"),
    (configs.UniPC(clip_x0=False, denoise=False, spacing="log_snr"), 1, PURPLE, "P"),
)


def between_ends(schedule: Schedule) -> Tensor:
    """Times from the schedule's log-SNR of HIGHEST to that of LOWEST, dense where it is steep, float64 [N]."""
    ends = schedule.time(torch.tensor([HIGHEST, LOWEST], dtype=torch.float64))
    near = torch.logspace(-12, -1, 300, dtype=torch.float64)
    t = torch.cat([near, torch.linspace(0.1, 0.9, 300, dtype=torch.float64), 1 - near, ends]).sort().values
    return t[(t >= ends[0]) & (t <= ends[1])]


def schedules(quick: bool) -> Figure:  # noqa: ARG001 - it is quick
    """log-SNR over t of the fixed kinds, each cut where the continuous processes cut it."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for name, config, colour, line in SCHEDULES:
        schedule = make_schedule(config, HIGHEST, LOWEST)
        t = between_ends(schedule)
        log_snr = schedule.log_snr(t)
        axes.plot(t.numpy(), log_snr.numpy(), line, color=colour, label=name)
        axes.plot(t[[0, -1]].numpy(), log_snr[[0, -1]].numpy(), "o", color=colour, markersize=5, clip_on=False)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlim=(0, 1), ylim=(-13.8, 13.8), xlabel="t  (0 is data)", ylabel="log-SNR")
    axes.set_title("log-SNR falls from data to noise; where it lingers and where it ends differ")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def weightings(quick: bool) -> Figure:  # noqa: ARG001
    """lambda on the squared error of epsilon over log-SNR, by `weighting.weights` itself."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for name, config, schedule, colour, line in WEIGHTINGS:
        process = make_process(VpProcess(schedule=schedule))
        t = between_ends(process.schedule)
        factors = weights(config, Parameterization("epsilon"), process, t)
        axes.plot(process.log_snr(t).numpy(), factors.numpy(), line, color=colour, label=name)
    axes.set(xlim=(10, -10), ylim=(1e-4, 1e3), yscale="log")
    axes.set(xlabel="log-SNR  (data on the left, noise on the right)", ylabel=r"$\lambda$ on the error of $\epsilon$")
    axes.set_title("Weightings disagree by orders of magnitude, most of all near data")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def paths(process: Process, config: SolverConfig, count: int) -> tuple[Tensor, Tensor]:
    """Where `count` samples are each time the solver asks, and in the end: log-SNR [N], x [N, count]."""
    denoiser = DATA.denoiser(process)
    solver = make_solver(config, denoiser, DoubleNoise(ImageNoise(0, range(count), (1, 1, 1))))
    times, places = [], []
    while (query := solver.want()) is not None:
        times.append(query.t[0])
        places.append(query.x.flatten())
        solver.feed(denoiser.output(query.x, query.t, query.label))
    times.append(torch.tensor(process.t_min, dtype=torch.float64))
    return process.log_snr(torch.stack(times)), torch.stack([*places, solver.x.flatten()])


def trajectories(quick: bool) -> Figure:
    """The reverse SDE and the probability-flow ODE of a mixture, from the same x_T, over the exact marginals."""
    process = make_process(VpProcess(log_snr_max=8.0))
    steps, count, shown = (60, 200, 10) if quick else (400, 2000, 30)
    grid = {"clip_x0": False, "denoise": False, "spacing": "log_snr"}
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 4, sharey=True, gridspec_kw={"width_ratios": [5, 1, 5, 1]}))
    for axes, edge, title, config in (
        (*panels[:2], "Reverse SDE (euler_maruyama)", configs.EulerMaruyama(num_steps=steps, **grid)),
        (*panels[2:], "Probability-flow ODE (heun)", configs.Heun(num_steps=steps // 2, **grid)),
    ):
        log_snr, x = paths(process, config, count)
        background(axes, process)
        axes.plot(log_snr.numpy(), x[:, :shown].numpy(), color=BLUE, linewidth=0.7, alpha=0.8)
        axes.set(xlim=(-7, 8), ylim=(-3, 3), xticks=(-5, 0, 5), xlabel="log-SNR  (noise to data)", title=title)
        right_edge(edge, process, x[-1])
    panels[0].set_ylabel("x")
    panels[3].legend(loc="upper right", fontsize=9, handlelength=1.0, borderaxespad=0)
    return figure


def background(axes: Axes, process: Process) -> None:
    """The marginal density of x_t as shades, darkest where it is densest at that log-SNR."""
    log_snr, x = torch.linspace(-7, 8, 181, dtype=torch.float64), torch.linspace(-3, 3, 241, dtype=torch.float64)
    density = DATA.log_prob(process, process.time(log_snr), x.expand(len(log_snr), -1)).exp()
    shades = (density / density.amax(1, keepdim=True)).T.numpy()
    axes.imshow(shades, origin="lower", extent=(-7, 8, -3, 3), aspect="auto", cmap="Greys", vmax=2.0)


def right_edge(axes: Axes, process: Process, samples: Tensor) -> None:
    """The data's true density beside a histogram of the samples."""
    x = torch.linspace(-3, 3, 400, dtype=torch.float64)
    true = DATA.log_prob(process, torch.zeros(1, dtype=torch.float64), x[None])[0].exp()
    axes.hist(
        samples.numpy(), np.linspace(-2, 2, 61).tolist(), density=True, orientation="horizontal", color=SKY,
        label="samples",
    )  # fmt: skip
    axes.plot(true.numpy(), x.numpy(), color=BLACK, linewidth=1.2, label="true")
    axes.set(xticks=[], xlim=(0, 1.3), xlabel="data")
    axes.spines["bottom"].set_visible(False)


def solver_order(quick: bool) -> Figure:
    """The largest error on the mixture's ODE over network evaluations, and lines of slope -1, -2 and -3."""
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    steps, exact = ((10, 20) if quick else (10, 20, 40, 80, 160, 320, 640)), exact_ends()
    for config, cost, colour, marker in SOLVERS:
        evaluations = [cost * n for n in steps]
        errors = [float((sampled_ends(config, n) - exact).abs().max()) for n in steps]
        axes.plot(evaluations, errors, marker=marker, markersize=5, color=colour, label=config.kind)
    ends = np.array([20.0, 1280.0])
    for order, start in ((1, 0.6), (2, 0.012), (3, 2e-3)):
        axes.plot(ends, start * (ends / ends[0]) ** -order, color="0.7", linewidth=1, linestyle="--", zorder=0)
        axes.annotate(f"slope -{order}", (ends[1], start * (ends[1] / ends[0]) ** -order), color="0.4", fontsize=9)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="largest error at t = 0.05")
    axes.set_title("Error against the exact ODE: the slope is the solver's order")
    axes.legend(loc="center left", bbox_to_anchor=(1.06, 0.5))
    return figure


FIGURES: dict[str, Callable[[bool], Figure]] = {
    "schedules.png": schedules,
    "weightings.png": weightings,
    "trajectories.png": trajectories,
    "solver-order.png": solver_order,
}


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of 256 colours, a fraction of the size and the same to the eye."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(256).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw all pictures; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.plots", description="Draw the pictures of docs/theory.md.")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), metavar="FOLDER", help="default: docs/images")
    parser.add_argument("--quick", action="store_true", help="coarse pictures, to see that they can be drawn")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    settings: dict[Any, Any] = STYLE
    with mpl.rc_context(settings):
        for name, draw in FIGURES.items():
            save(draw(options.quick), options.out / name)
            print(options.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
