"""Networks as functions of (x, t), and the images they refuse."""

import json

import pytest
import torch
from pydantic import ValidationError

from diffusion.config import MLPConfig, UNetConfig
from diffusion.network import build_network

CASES = [
    (UNetConfig(channels=(8, 16), norm_groups=4), (1, 8, 8)),
    (UNetConfig(channels=(8,), attention=(False,), norm_groups=2, layers_per_block=2), (3, 5, 7)),
    (UNetConfig(channels=(8, 8, 16), attention=(False, True, True), norm_groups=4), (3, 8, 12)),
    (MLPConfig(width=32, depth=2), (1, 2, 1)),
    (MLPConfig(width=33, depth=1), (3, 2, 2)),
    (UNetConfig(channels=(8, 16), norm_groups=4, classes=3), (1, 4, 4)),
    (MLPConfig(width=16, depth=1, classes=3), (1, 2, 2)),
]
every_network = pytest.mark.parametrize(("config", "shape"), CASES, ids=[f"{c.kind}-{s}-{c.classes}" for c, s in CASES])


def labels(config, *values):
    return torch.tensor(values) if config.classes else None


def build(config, shape, learned_variance=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_network(config, shape, learned_variance).eval()


@every_network
def test_every_parameter_takes_part_and_the_output_is_of_xs_shape(config, shape):
    network = build(config, shape)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    output = network(x, torch.tensor([1.0, 500.5, 1000.0]), labels(config, 0, 3, 1))
    assert output.shape == x.shape
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters())
    without = [name for name, p in network.named_parameters() if not bool(p.grad.abs().max() > 0)]
    # a key's bias adds one constant to all of a softmax's logits: its true gradient is zero
    assert [name for name in without if not name.endswith("to_k.bias")] == []


@every_network
def test_rows_do_not_mix_and_t_matters(config, shape):
    network = build(config, shape).double()
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.inference_mode():
        together = network(torch.cat([x, x, -x]), torch.tensor([3, 900, 3]), labels(config, 1, 1, 1))
        torch.testing.assert_close(network(x, torch.tensor([3]), labels(config, 1)), together[:1], rtol=0, atol=1e-6)
        assert float((together[0] - together[1]).abs().max()) > 1e-3


@every_network
def test_times_between_whole_steps_are_heard(config, shape):
    network = build(config, shape).double()
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.inference_mode():
        at = [network(x, torch.tensor([time]), labels(config, 2)) for time in (3.0, 3.4, 4.0)]
    assert float((at[0] - at[1]).abs().max()) > 1e-5
    assert float((at[1] - at[2]).abs().max()) > 1e-5


@pytest.mark.parametrize("config", [c for c, _ in CASES if c.classes], ids=lambda config: config.kind)
def test_labels_are_heard_and_there_is_one_more_for_none(config):
    network, shape = build(config, (1, 4, 4)).double(), (4, 1, 4, 4)
    x = torch.ones(shape, dtype=torch.float64)
    with torch.inference_mode():
        output = network(x, torch.full((4,), 7.0), torch.arange(4))
    for first in range(4):
        for second in range(first):
            assert float((output[first] - output[second]).abs().max()) > 1e-4
    with pytest.raises(IndexError):
        network(x[:1], torch.tensor([7.0]), torch.tensor([4]))


@every_network
def test_a_learned_variance_doubles_the_channels_that_come_out(config, shape):
    network = build(config, shape, learned_variance=True)
    x = torch.zeros(2, *shape)
    assert network(x, torch.tensor([1.0, 2.0]), labels(config, 0, 1)).shape == (2, 2 * shape[0], *shape[1:])


def test_a_state_of_the_same_configuration_fits_and_gives_the_same_function():
    config, shape = CASES[0]
    first, second = build(config, shape), build_network(config, shape).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([5, 6])
    assert torch.equal(first(x, t), second(x, t))


@pytest.mark.parametrize(
    ("channels", "sides", "factor"), [((8, 8), (7, 8), 2), ((8, 8), (8, 9), 2), ((8, 8, 8), (8, 10), 4)]
)
def test_images_that_cannot_be_halved_are_refused_with_the_way_out(channels, sides, factor):
    config = UNetConfig(channels=channels, attention=(False,) * len(channels))
    with pytest.raises(ValueError, match=f"divisible by {factor}; the images are {sides[0]} x {sides[1]}"):
        build_network(config, (1, *sides))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": [8, 8], "attention": [True]}, "one per entry of channels"),
        ({"channels": [12, 8]}, "norm_groups = 8 does not divide"),
        ({"channels": [], "attention": []}, "at least 1"),
        ({"channels": [0, 8]}, "greater than or equal to 1"),
        ({"dropout": 1.0}, "less than 1"),
        ({"classes": -1}, "greater than or equal to 0"),
    ],
)
def test_networks_that_cannot_exist_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        UNetConfig.model_validate_json(json.dumps(values))


def test_the_narrowest_valid_mlp_runs():
    output = build(MLPConfig(width=2, depth=1), (1, 2, 1))(torch.zeros(1, 1, 2, 1), torch.tensor([1]))
    assert torch.isfinite(output).all()
