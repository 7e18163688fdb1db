"""The likelihood view of a model: bits per dimension of held-out images, each with its standard error.

The three likelihoods are three questions: what the chain of steps assigns to 8-bit images at least (`vlb`), what the
continuous process does (`continuous_vlb`), and the density of the probability-flow ODE on dequantised images (`nll`).
"""

from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import Tensor

from diffusion import durable
from diffusion.likelihood.bound import Vlb
from diffusion.likelihood.discrete import bits_per_dim
from diffusion.likelihood.ode import dequantised_bits_per_dim
from diffusion.process.sde import Process
from trainer.data.dataset import Dataset
from trainer.evaluate.likelihood.denoising_curve import denoising_curve
from trainer.evaluate.results import PER_IMAGE, EvaluationResults
from trainer.run.summary import Score

CURVE = "denoising.json"


def likelihood_view(
    results: EvaluationResults, process: Process, data: Dataset, folder: Path, package_sha256: str
) -> dict[str, Score]:
    """Likelihoods of the held-out images; writes heldout.safetensors, nats of each image, and denoising.json."""
    dimensions, chosen = int(np.prod(data.info.image_shape)), results.config.metrics
    metrics: dict[str, Score] = {}
    per_image: dict[str, Tensor] = {}
    for kind in ("vlb", "continuous_vlb"):
        if kind in chosen:
            bound = results.bound(kind)
            metrics |= bound_scores(kind, bound, dimensions)
            per_image[kind] = bound.total
    if "nll" in chosen:
        per_image["nll"] = results.joined("nll", "nll")
        metrics["nll_bpd"] = mean_over_images(dequantised_bits_per_dim(per_image["nll"], dimensions))
        metrics["nll_evaluations"] = Score(float(results.joined("nll", "evaluations").double().mean()))
    if per_image:
        of_what = {"dataset_fingerprint": data.info.fingerprint, "dimensions": str(dimensions)}
        content = save(per_image, of_what)
        durable.write_bytes(folder / PER_IMAGE, content)
    if "denoising" in chosen:
        durable.write_text(folder / CURVE, denoising_curve(results, process, data, package_sha256).to_json())
    return metrics


def bound_scores(name: str, bound: Vlb, dimensions: int) -> dict[str, Score]:
    """Mean over images of a bound and of its terms in bits/dim, each with its standard error.

    The standard error is that of the mean over images: it holds both their differences and the noise of the estimate.
    """
    terms = {"": bound.total, "prior_": bound.prior, "diffusion_": bound.diffusion}
    terms["reconstruction_"] = bound.reconstruction
    return {f"{name}_{term}bpd": mean_over_images(bits_per_dim(nats, dimensions)) for term, nats in terms.items()}


def mean_over_images(values: Tensor) -> Score:
    """The mean of values [N], one for each image, and its standard error."""
    n = len(values)
    return Score(float(values.mean()), float(values.std() / n**0.5), df=n - 1, n=n, replicate="images")
