"""The denoising curve: exact for a network that says nothing, and the same as adding up image by image."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.config import VpProcess
from diffusion.denoiser import Denoiser
from diffusion.process.sde import make_process
from trainer.evaluate.likelihood.denoising_curve import (
    DRAWS,
    GROUPS,
    POINTS,
    STRIDE,
    curve_log_snr,
    denoising_curve,
    points_of,
    score_denoising,
)

PROCESS = make_process(VpProcess())


def test_neighbouring_images_have_all_points_between_them():
    points = points_of(range(12, 12 + STRIDE))
    assert points.shape == (STRIDE, DRAWS)
    assert sorted(points.flatten().tolist()) == list(range(POINTS))


def test_of_a_network_that_says_nothing_the_error_is_the_noise_itself():
    """epsilon = 0: the error is ||eps||^2, and x_0 is estimated as x_t / alpha, clipped."""
    denoiser = Denoiser(lambda x, time, label: torch.zeros_like(x), PROCESS, "epsilon")
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(0, 256, (3, 1, 2, 2), generator=generator) / 127.5 - 1
    eps = torch.randn(3, DRAWS, 1, 2, 2, generator=generator)
    points = points_of(range(3))
    found = score_denoising(denoiser, x_0, points, eps, None)
    torch.testing.assert_close(found["squared_error"], eps.double().square().sum((2, 3, 4)), rtol=1e-12, atol=0)
    torch.testing.assert_close(found["second_moment"], x_0.double().square().sum((1, 2, 3)), rtol=1e-12, atol=0)
    log_snr = curve_log_snr(PROCESS)[points]
    estimate = (x_0[:, None].double() + eps.double() * torch.exp(-log_snr / 2)[..., None, None, None]).clamp(-1, 1)
    expected = (x_0[:, None].double() - estimate).square().sum((2, 3, 4))
    torch.testing.assert_close(found["x0_error"], expected, rtol=1e-4, atol=1e-5)  # the chain is computed in float32
    assert (found["reconstruction"] >= 0).all()


@dataclass
class Joined:
    """What the blocks of an evaluation hold, without the blocks."""

    fields: dict[str, torch.Tensor]

    def joined(self, kind: str, field: str) -> torch.Tensor:
        assert kind == "denoising"
        return self.fields[field]


def test_the_curve_is_the_mean_of_each_group_at_each_point():
    images, rng = 3 * STRIDE * GROUPS + 5, np.random.default_rng(0)
    draws = {
        name: torch.from_numpy(rng.random((images, DRAWS))) for name in ("squared_error", "x0_error", "reconstruction")
    }
    fields = draws | {"second_moment": torch.from_numpy(rng.random(images))}
    info = SimpleNamespace(image_shape=(1, 2, 2), fingerprint="d" * 64)
    results: Any = Joined(fields)
    data: Any = SimpleNamespace(info=info)
    curve = denoising_curve(results, PROCESS, data, "p")
    points: list[list[int]] = points_of(range(images)).tolist()
    for name, means in (("squared_error", curve.mse), ("x0_error", curve.x0_mse)):
        for group in range(GROUPS):
            for point in (0, 1, POINTS - 1):
                values = [
                    float(fields[name][image, points[image].index(point)])
                    for image in range(images)
                    if image // STRIDE % GROUPS == group and point in points[image]
                ]
                assert float(means[group, point]) == pytest.approx(np.mean(values), rel=1e-12)
    assert (curve.images, curve.dimensions) == (images, 4)
    assert curve.second_moment == float(fields["second_moment"].mean())
