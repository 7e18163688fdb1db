"""diffusers' scheduler_config.json read as a chain and a prediction, and written from them.

diffusers counts timesteps 0..T - 1, this code t = 1..T. All schedulers of a chain share these fields:
`num_train_timesteps`; betas by `trained_betas`, or by `beta_schedule` from `beta_start` to `beta_end`, which are used
as they are, where this code scales them by 1000 / T; `rescale_betas_zero_snr`; `prediction_type`. DDPMScheduler also
has `variance_type`, the Sigma_theta of equation (6); without it the chain gets beta-tilde, DDPM's default. The other
fields say how to sample, which is the solver's concern here.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

import torch
from pydantic import ValidationError
from torch import Tensor

from diffusion.config import (
    CosineSchedule,
    DdpmProcess,
    LinearSchedule,
    ScaledLinearSchedule,
    ScheduleConfig,
    SigmoidSchedule,
    TableSchedule,
)
from diffusion.config.errors import MAX_SHOWN
from diffusion.denoiser import Denoiser
from diffusion.prediction import Prediction
from diffusion.process.kernels import transition_variance
from diffusion.process.sde import Chain
from diffusion.tensors import to_floats

Fields = Mapping[str, Any]
Choice = TypeVar("Choice")
ReverseVariance = Literal["beta", "beta_tilde", "learned"]

DDPM_ENDS, KARRAS_ENDS = (1e-4, 0.02), (0.00085, 0.012)
DEFAULT_ENDS = {  # beta_start and beta_end of a file that lacks them
    "DDPMScheduler": DDPM_ENDS,
    "DDIMScheduler": DDPM_ENDS,
    "PNDMScheduler": DDPM_ENDS,
    "DPMSolverMultistepScheduler": DDPM_ENDS,
    "DPMSolverSinglestepScheduler": DDPM_ENDS,
    "DEISMultistepScheduler": DDPM_ENDS,
    "UniPCMultistepScheduler": DDPM_ENDS,
    "EulerDiscreteScheduler": DDPM_ENDS,
    "EulerAncestralDiscreteScheduler": DDPM_ENDS,
    "LMSDiscreteScheduler": DDPM_ENDS,
    "HeunDiscreteScheduler": KARRAS_ENDS,
    "KDPM2DiscreteScheduler": KARRAS_ENDS,
    "KDPM2AncestralDiscreteScheduler": KARRAS_ENDS,
}
CLIPPING = ("DDPMScheduler", "DDIMScheduler")
"""Those that clip where their file does not say."""
BETA_SCHEDULES = {
    "linear": LinearSchedule,
    "scaled_linear": ScaledLinearSchedule,
    "sigmoid": SigmoidSchedule,
    "squaredcos_cap_v2": CosineSchedule,
}
PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
PREDICTION_TYPES = {"epsilon": "epsilon", "score": "epsilon", "x0": "sample", "v": "v_prediction"}
REVERSE_VARIANCES: dict[str, ReverseVariance] = {  # diffusers' `learned` is the variance itself, not an interpolation
    "fixed_small": "beta_tilde",
    "fixed_small_log": "beta_tilde",
    "fixed_large": "beta",
    "fixed_large_log": "beta",
    "learned_range": "learned",
}
VARIANCE_TYPES = {"beta": "fixed_large", "beta_tilde": "fixed_small", "learned": "learned_range"}


def unsupported(field: str, value: object, allowed: str) -> ValueError:
    """The error for a field without a counterpart, naming the field, its value and what is allowed."""
    return ValueError(f"{field} = {str(value)[:MAX_SHOWN]}; allowed: {allowed}")


def read_scheduler(fields: Fields) -> tuple[DdpmProcess, Prediction]:
    """The chain, and what the network predicts, according to a scheduler's configuration.

    Args:
        fields: of scheduler_config.json.

    Raises:
        ValueError: a field that has no counterpart here; the message names the field, its value and what is allowed.
    """
    ends = _choice(fields, "_class_name", "", DEFAULT_ENDS)
    if fields.get("use_flow_sigmas", False):
        raise unsupported("scheduler.use_flow_sigmas", True, "false, since a flow is not a chain of betas")
    if (kind := fields.get("timestep_type", "discrete")) != "discrete":
        raise unsupported("scheduler.timestep_type", kind, "discrete")
    prediction = _choice(fields, "prediction_type", "epsilon", PREDICTIONS)
    steps = fields.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or steps < 2:
        raise unsupported("scheduler.num_train_timesteps", steps, "a whole number from 2")
    schedule = _schedule(fields, ends, steps)
    if schedule.zero_terminal_snr and prediction == "epsilon":
        raise unsupported("scheduler.prediction_type", "epsilon", "sample, v_prediction where the terminal SNR is zero")
    variance = _reverse_variance(fields)
    return DdpmProcess(num_train_timesteps=steps, schedule=schedule, reverse_variance=variance), prediction


def clips_x0(fields: Fields) -> bool:
    """Whether a scheduler clips every estimate of x_0 to [-1, 1].

    Raises:
        ValueError: it confines the estimates in another way, which no solver here does.
    """
    if fields.get("thresholding", False):
        raise unsupported("scheduler.thresholding", True, "false, since solvers here clip x_0 to [-1, 1] or not at all")
    clips = bool(fields.get("clip_sample", fields["_class_name"] in CLIPPING))
    bound = fields.get("clip_sample_range", 1.0)
    if clips and bound != 1:
        raise unsupported("scheduler.clip_sample_range", bound, "1, or clip_sample = false")
    return clips


def _choice(fields: Fields, name: str, default: str, choices: Mapping[str, Choice]) -> Choice:
    value = fields.get(name, default)
    if not isinstance(value, str) or value not in choices:
        raise unsupported(f"scheduler.{name}", value, ", ".join(choices))
    return choices[value]


def _reverse_variance(fields: Fields) -> ReverseVariance:
    # the null of other schedulers says only that the network gives no variance
    if fields["_class_name"] != "DDPMScheduler" and fields.get("variance_type") is None:
        return "beta_tilde"
    return _choice(fields, "variance_type", "fixed_small", REVERSE_VARIANCES)


def _schedule(fields: Fields, ends: tuple[float, float], steps: int) -> ScheduleConfig:
    zero_terminal_snr = bool(fields.get("rescale_betas_zero_snr", False))
    table = fields.get("trained_betas")
    if table is not None:
        return _table(table, steps, zero_terminal_snr)
    kind = _choice(fields, "beta_schedule", "linear", BETA_SCHEDULES)
    if issubclass(kind, CosineSchedule):
        return CosineSchedule(zero_terminal_snr=zero_terminal_snr)
    start = _beta(fields, "beta_start", ends[0], steps)
    end = _beta(fields, "beta_end", ends[1], steps)
    return kind(beta_start=start, beta_end=end, zero_terminal_snr=zero_terminal_snr)


def _beta(fields: Fields, name: str, default: float, steps: int) -> float:
    """An end of the betas, converted to T = 1000, for which configurations here state it."""
    value = fields.get(name, default)
    below = 1000 / max(1000, steps)
    if not isinstance(value, int | float) or not 0 < value < below:
        raise unsupported(f"scheduler.{name}", value, f"between 0 and {below:g} with {steps} steps, or trained_betas")
    return value * steps / 1000


def _table(values: object, steps: int, zero_terminal_snr: bool) -> TableSchedule:
    """A table of betas, as given; a last beta of 1 becomes a terminal SNR of zero."""
    table = cast(list[object], values) if isinstance(values, list) else []
    if len(table) != steps or not all(isinstance(beta, int | float) for beta in table):
        allowed = f"null or a list of num_train_timesteps = {steps} numbers"
        raise unsupported("scheduler.trained_betas", f"{len(table)} entries", allowed)
    betas = torch.tensor(table, dtype=torch.float64)
    if betas[-1] == 1:
        betas, zero_terminal_snr = _with_terminal_snr(betas), True
    try:
        return TableSchedule(betas=tuple(to_floats(betas)), zero_terminal_snr=zero_terminal_snr)
    except ValidationError as error:
        beta = error.errors()[0]["input"]
        raise unsupported("a beta of scheduler.trained_betas", beta, "above 0 and below 1; the last may be 1") from None


def _with_terminal_snr(betas: Tensor) -> Tensor:
    """Betas below 1 that `betas.rescale_to_zero_terminal_snr` maps to these, whose last is 1.

    It maps alpha_t to (alpha_t - alpha_T) alpha_1 / (alpha_1 - alpha_T), whose inverse leaves alpha_T free.
    """
    alpha = torch.exp(torch.log1p(-betas).cumsum(0) / 2)
    last = alpha[-2] / 2
    alpha = last + alpha * (alpha[0] - last) / alpha[0]
    a = torch.cat([torch.ones(1, dtype=torch.float64), alpha**2])
    return 1 - a[1:] / a[:-1]


def write_scheduler(denoiser: Denoiser) -> dict[str, Any]:
    """The arguments of a diffusers DDPMScheduler for a denoiser's chain.

    Betas are written as a table, and estimates of x_0 are clipped to [-1, 1], as all solvers here do by default.
    `trailing` timesteps correspond to `uniform` spacing here; but where they skip steps, DDPMScheduler adds noise to
    the final image. With beta-tilde that noise is zero; with the other variances `leading` is written instead,
    diffusers' default.

    Args:
        denoiser: its process is a chain.

    Raises:
        ValueError: a process or a prediction that diffusers does not have.
    """
    process, prediction = denoiser.process, denoiser.prediction
    if not isinstance(process, Chain):
        allowed = "ddpm, since diffusers' schedulers are chains of betas"
        raise unsupported("process.kind", type(process).__name__.lower(), allowed)
    if prediction not in PREDICTION_TYPES:
        reason = "diffusers' chains show the network x_t itself, not c_in x_t / alpha_t"
        raise unsupported("objective.prediction", prediction, f"{', '.join(PREDICTION_TYPES)}, since {reason}")
    times = process.step_times()
    return {
        "num_train_timesteps": process.num_steps,
        "trained_betas": to_floats(transition_variance(process, times[:-1], times[1:])),
        "prediction_type": PREDICTION_TYPES[prediction],
        "variance_type": VARIANCE_TYPES[process.reverse_variance],
        "timestep_spacing": "trailing" if process.reverse_variance == "beta_tilde" else "leading",
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }
