"""What a report calls things, and how it writes numbers."""

import math
from collections.abc import Mapping
from typing import Any

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


def sampling(values: Mapping[str, Any]) -> str:
    """How many samples there are and what drew them."""
    settings = values["evaluation"]
    kind = settings["solver"]["kind"]
    seeds = f"{settings['seeds']} × " if settings.get("seeds", 1) > 1 else ""
    return f"{seeds}{values['samples']:,} samples, {SOLVERS.get(kind, kind)}"


def number(values: Mapping[str, Any], name: str) -> float | None:
    """A value that can be drawn: there, and finite."""
    value = values.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def short(value: float) -> str:
    """A number for an axis: 0.03, 1500, 2e6."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}"
    digits, exponent = f"{value:.3e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def measured(value: float, error: float | None) -> str:
    """A value to two digits of its standard error; to four digits where there is none."""
    if abs(value) >= 1e7 or (error or 0.0) >= 1e7:
        return short(value) + (f" ± {error:.1e}" if error else "")
    if not error:
        return f"{value:.4g}" if 1e-4 <= abs(value) < 1e4 else short(value) if abs(value) < 1 else f"{value:.0f}"
    decimals = min(max(0, 1 - math.floor(math.log10(error))), 8)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
