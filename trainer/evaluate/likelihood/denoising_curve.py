"""The denoising error against log-SNR, ||eps - eps_theta||^2: the one curve that both views of a network come from.

Half its integral over log-SNR is the continuous bound's diffusion term, whatever the schedule. Each held-out image is
scored at every sixth of POINTS log-SNRs, evenly from that at t_min to that at t_max; six neighbours in the split have
them all.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.likelihood.decoder import channel_log_prob
from diffusion.likelihood.proposal import even_log_snr
from diffusion.likelihood.screening import DenoisingCurve
from diffusion.process.kernels import diffuse
from diffusion.process.sde import Process
from trainer.data.dataset import Dataset
from trainer.evaluate.results import EvaluationResults

POINTS, STRIDE, GROUPS = 96, 6, 8
LARGEST_LOG_SNR = 30.0
DRAWS = POINTS // STRIDE


def curve_log_snr(process: Process) -> Tensor:
    """The log-SNRs of the curve, from the highest; float64 [POINTS]."""
    return even_log_snr(process, POINTS, LARGEST_LOG_SNR)


def points_of(images: Sequence[int]) -> Tensor:
    """Which points each image is scored at, int64 [N, DRAWS]."""
    return torch.tensor([list(range(image % STRIDE, POINTS, STRIDE)) for image in images])


def score_denoising(
    denoiser: Denoiser, x_0: Tensor, points: Tensor, eps: Tensor, label: Tensor | None
) -> dict[str, Tensor]:
    """Squared errors of images at their points, and what of the continuous bound is of the data alone.

    Args:
        denoiser: the model.
        x_0: data on the 256-level grid of [-1, 1], [B, C, H, W].
        points: of `curve_log_snr`, int64 [B, K].
        eps: noise [B, K, C, H, W].
        label: int64 [B], or None.

    Returns:
        float64: `squared_error` [B, K] of ||eps - eps_theta||^2, `x0_error` [B, K] of ||x_0 - clip(x_theta)||^2,
        `reconstruction` [B, K] of -log p(x_0 | x_t) by the channel, nats, and `second_moment` [B] of ||x_0||^2.
    """
    process = denoiser.process
    log_snr = curve_log_snr(process)[points]
    squared, x_0_error, nats = list[Tensor](), list[Tensor](), list[Tensor]()
    for draw in range(points.shape[1]):
        t, noise = process.time(log_snr[:, draw]), eps[:, draw]
        x_t = diffuse(process, x_0, t, noise)
        output, _ = denoiser.split(denoiser.output(x_t, t, label))
        at = denoiser.coefficients(x_t, t)
        squared.append(_squared_error(noise, denoiser.parameterization.epsilon(output, x_t, *at)))
        x_0_error.append(_squared_error(x_0, denoiser.parameterization.x0(output, x_t, *at).clamp(-1, 1)))
        nats.append(_reconstruction(x_0, log_snr[:, draw], noise))
    return {
        "squared_error": torch.stack(squared, 1),
        "x0_error": torch.stack(x_0_error, 1),
        "reconstruction": torch.stack(nats, 1),
        "second_moment": x_0.to(torch.float64).square().flatten(1).sum(1),
    }


def _squared_error(target: Tensor, estimate: Tensor) -> Tensor:
    return (target.to(torch.float64) - estimate.to(torch.float64)).square().flatten(1).sum(1)


def _reconstruction(x_0: Tensor, log_snr: Tensor, eps: Tensor) -> Tensor:
    """-log p(x_0 | z) at each image's own log-SNR, nats [B]; all processes have the same, which depends on it alone."""
    alpha, sigma = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
    x, noise = x_0.to(torch.float64), eps.to(torch.float64)
    return torch.stack(
        [
            -channel_log_prob(
                x[row : row + 1], a * x[row : row + 1] + s * noise[row : row + 1], float(a), float(s)
            ).sum()
            for row, (a, s) in enumerate(zip(alpha, sigma, strict=True))
        ]
    )


def denoising_curve(results: EvaluationResults, process: Process, data: Dataset, package_sha256: str) -> DenoisingCurve:
    """The curve of an evaluation's blocks: means over the images of each of GROUPS groups, at every point."""
    second_moment = results.joined("denoising", "second_moment")
    images = len(second_moment)
    points, numbers = points_of(range(images)).numpy(), np.arange(images)
    group = np.broadcast_to((numbers // STRIDE % GROUPS)[:, None], points.shape)
    counts = np.zeros((GROUPS, POINTS))
    np.add.at(counts, (group, points), 1)

    def summed(name: str) -> NDArray[np.float64]:
        totals = np.zeros((GROUPS, POINTS))
        np.add.at(totals, (group, points), results.joined("denoising", name).numpy())
        return totals

    return DenoisingCurve(
        log_snr=curve_log_snr(process),
        mse=torch.from_numpy(summed("squared_error") / counts),
        x0_mse=torch.from_numpy(summed("x0_error") / counts),
        second_moment=float(second_moment.mean()),
        reconstruction=torch.from_numpy(summed("reconstruction").sum(0) / counts.sum(0)),
        dimensions=int(np.prod(data.info.image_shape)),
        package_sha256=package_sha256,
        dataset_fingerprint=data.info.fingerprint,
        images=images,
    )
