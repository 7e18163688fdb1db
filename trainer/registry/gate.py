"""The gate between a new version of a model and the alias that is served: a pure decision, and the checks it rests on.

A version becomes champion only if its package is intact, its outputs are finite, its three likelihoods roughly agree,
and it beats the champion beyond the error bars. A metric that was not measured counts as a failure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.run import GateConfig
from trainer.evaluate.comparison import ComparedModel, compare
from trainer.run.summary import LIKELIHOODS

PROBE_TIMES = 5  # number of times t at which a network's outputs are checked


@dataclass(frozen=True)
class Decision:
    """Whether a version becomes champion, and why or why not."""

    promoted: bool
    reason: str


def decide(
    gate: GateConfig,
    candidate: ComparedModel,
    faults: Sequence[str],
    champion: ComparedModel | None,
    likelihoods: Sequence[str] = LIKELIHOODS,
) -> Decision:
    """Decide whether a version becomes champion.

    Args:
        gate: settings of the gate.
        candidate: evaluation of the new version.
        faults: faults of the version's package, one message each.
        champion: evaluation of the version to beat; None where there is none.
        likelihoods: names of the likelihoods that the candidate's process has.
    """
    problems = [*faults, *inconsistencies(candidate, likelihoods, gate.likelihood_gap)]
    if problems:
        return Decision(False, "; ".join(problems))
    score = candidate.score(gate.metric)
    if score is None:
        return Decision(False, f"{gate.metric}, which decides, was not measured (run.gate.metric, evaluation.metrics)")
    if champion is None:
        return Decision(True, f"{gate.metric} {score}; there was no champion")
    verdict = compare(champion, candidate, gate.metric, gate.sigmas)
    beside = f"{gate.metric} {score} beside {champion.name}'s {champion.score(gate.metric) or 'nothing'}"
    if verdict.word == "not comparable":
        return Decision(False, f"not comparable with {champion.name}: {verdict.reason}")
    return Decision(verdict.word == "better", f"{beside}: {verdict.word}, {verdict.reason}")


def inconsistencies(candidate: ComparedModel, likelihoods: Sequence[str], max_gap: float) -> list[str]:
    """Messages on likelihoods that were not measured, or that are more than `max_gap` bits/dim apart.

    The three differ in what they measure (a discrete-time bound, a continuous-time bound, a density), but lie close for
    one model: a wrong schedule, weights that were not loaded or data on another scale shift them by several bits.
    """
    scores = {name: candidate.score(name) for name in likelihoods}
    missing = [name for name, score in scores.items() if score is None]
    if missing:
        return [f"{', '.join(missing)} {'was' if len(missing) == 1 else 'were'} not measured (evaluation.metrics)"]
    values = {name: score.value for name, score in scores.items() if score is not None}
    low, high = min(values, key=lambda name: values[name]), max(values, key=lambda name: values[name])
    if not values[high] - values[low] <= max_gap:
        return [
            f"likelihoods do not agree: {low} {values[low]:.3f} and {high} {values[high]:.3f} are more than "
            f"{max_gap:g} bits/dim apart (run.gate.likelihood_gap)"
        ]
    return []


def faults_of(package: Path) -> list[str]:
    """Faults of a package, one message each: wrong digests, a broken network, or outputs that are not finite."""
    import torch

    from diffusion.package import load_package
    from diffusion.rng import Stream, counter_normal
    from diffusion.tensors import expand_to

    try:
        denoiser, config = load_package(package)
    except (ValueError, OSError) as error:
        return [f"the package is not whole: {str(error).splitlines()[0]}"]
    process = denoiser.process
    noise = counter_normal(0, Stream.SAMPLING_NOISE, [(0, row) for row in range(PROBE_TIMES)], config.image_shape)
    t = torch.linspace(process.t_min, process.t_max, PROBE_TIMES, dtype=torch.float64)
    label = None if denoiser.null_label is None else torch.arange(PROBE_TIMES) % denoiser.null_label
    with torch.inference_mode():
        output = denoiser.output(noise * expand_to(process.sigma(t), noise), t, label)
    bad = [float(time) for time, row in zip(t, output, strict=True) if not bool(row.isfinite().all())]
    return [f"its outputs are not finite at t = {', '.join(f'{time:g}' for time in bad)}"] if bad else []


def likelihoods_of(package: Path) -> tuple[str, ...]:
    """Names of the likelihoods that a packaged model has; with zero terminal SNR, only the discrete bound."""
    from diffusion.likelihood.continuous import log_snr_ends
    from diffusion.package import load_package

    try:
        log_snr_ends(load_package(package)[0].process)
    except ValueError:
        return ("vlb_bpd",)
    return LIKELIHOODS
