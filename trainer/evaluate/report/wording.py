"""What a report calls things, and how it writes numbers."""

import math
from collections.abc import Mapping
from typing import Any

from trainer.run.summary import Evaluated

LIKELIHOODS = {
    "vlb_bpd": "Variational bound, discrete time",
    "continuous_vlb_bpd": "Variational bound, continuous time",
    "nll_bpd": "Density of the probability-flow ODE",
}
BASELINES = {"heldout": "held-out images", "gaussian": "Gaussian fit", "noise": "uniform noise"}
FEATURES = {
    "classifier": "classifier features",
    "efficientnet_lite0": "EfficientNet-Lite0 features",
    "inception": "Inception-v3 features",
    "pixels": "pixels",
}
SOLVERS = {
    "ancestral": "ancestral sampling",
    "ddim": "DDIM",
    "euler_maruyama": "Euler–Maruyama",
    "predictor_corrector": "predictor–corrector",
    "euler": "Euler",
    "heun": "Heun",
    "rk45": "RK45",
    "edm_stochastic": "EDM, stochastic",
    "dpmpp_2m": "DPM-Solver++ (2M)",
    "dpmpp_3m": "DPM-Solver++ (3M)",
    "dpmpp_2m_sde": "SDE-DPM-Solver++ (2M)",
    "unipc": "UniPC",
}
ERRORS = "± is one standard error; error bars and shaded bands show two."


def distance_name(metric: str) -> str:
    """Of a Frechet or kernel distance: FID for the one that is known by that name."""
    kind = "Kernel distance (KID)" if metric.startswith("kid_") else "Fréchet distance"
    return "FID" if metric == "fid" else kind


def features_name(metric: str) -> str:
    """Whose features a distance is between."""
    name = "inception" if metric == "fid" else metric.split("_", 1)[1]
    return FEATURES.get(name, f"{name} features")


def lowered(text: str) -> str:
    """A text that does not begin a sentence."""
    return text[:1].lower() + text[1:]


def sampling(values: Mapping[str, Any]) -> str:
    """How many samples there are and what drew them."""
    settings = values["evaluation"]
    kind = settings["solver"]["kind"]
    seeds = f"{settings['seeds']} × " if settings.get("seeds", 1) > 1 else ""
    return f"{seeds}{values['samples']:,} samples, {SOLVERS.get(kind, kind)}"


def value_of(evaluated: Evaluated, metric: str) -> float | None:
    """A metric's value, where it was measured and is finite, so that it can be drawn."""
    score = evaluated.score(metric)
    return None if score is None else score.value


def error_of(evaluated: Evaluated, metric: str) -> float | None:
    """The standard error of such a value, where it has one."""
    score = evaluated.score(metric)
    return None if score is None else score.se


def short(value: float) -> str:
    """A number for an axis: 0.03, 1500, 2e6."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return _minus(f"{value:.6g}")
    digits, exponent = f"{value:.3e}".split("e")
    return _minus(f"{float(digits):g}e{int(exponent)}")


def measured(value: float, error: float | None) -> str:
    """A value to two digits of its standard error, of six at most; to four digits or the units where there is none."""
    if not error:
        return _minus(f"{value:.0f}") if 1e3 <= abs(value) < 1e6 else short(float(f"{value:.4g}"))
    if max(abs(value), error) >= 1e6:
        return f"{short(value)} ± {short(float(f'{error:.2g}'))}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if value:
        decimals = min(decimals, max(0, 5 - math.floor(math.log10(abs(value)))))
    written = f"{error:.{decimals}f}" if error >= 10.0**-decimals else short(float(f"{error:.1g}"))
    return f"{_minus(f'{round(value, decimals) + 0.0:.{decimals}f}')} ± {written}"


def _minus(text: str) -> str:
    return text.replace("-", "−") if text.startswith("-") and "e" not in text else text
