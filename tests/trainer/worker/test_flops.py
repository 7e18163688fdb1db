"""FLOPs are counted as the literature counts them, and a device's best is what it does."""

import pytest
import torch

from diffusion.config import DiTConfig, MLPConfig, UNetConfig
from trainer.worker.flops import best_flops, flops_per_image


def test_a_perceptrons_flops_are_those_of_its_matrices():
    """6 for each weight of a matrix: 2 in the forward pass, 4 in the backward pass."""
    width, depth, pixels = 16, 3, 64
    weights = (pixels + width) * width + depth * width * width + width * pixels
    assert flops_per_image(MLPConfig(width=width, depth=depth), (1, 8, 8), False) == 6 * weights


def test_dit_xl_2_has_the_papers_flops():
    """118.6 G multiply-adds for a forward pass on 32x32x4 (Peebles & Xie 2023, table 4), to within a percent."""
    network = DiTConfig(layers=28, heads=16, head_width=72, patch_size=2, classes=1000)
    assert flops_per_image(network, (4, 32, 32), True) == pytest.approx(6 * 118.64e9, rel=0.01)


def test_twice_the_channels_are_four_times_the_work():
    small, large = (flops_per_image(UNetConfig(channels=c), (3, 32, 32), False) for c in ((32, 64), (64, 128)))
    assert 3.5 < large / small < 4.0


def test_a_device_is_measured_at_its_best():
    assert best_flops(torch.device("cpu"), "fp32") > 1e9
