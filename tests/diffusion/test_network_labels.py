"""Networks told labels, float times and a second half for the reverse variance; classes and times are told apart."""

import pytest
import torch

from diffusion.config import DiTConfig, MLPConfig, UNetConfig
from diffusion.network import build_network

SHAPE, CLASSES = (1, 8, 8), 3
CONFIGS = [
    UNetConfig(channels=(8, 16), norm_groups=4, classes=CLASSES),
    DiTConfig(layers=1, heads=2, head_width=8, classes=CLASSES),
    MLPConfig(width=16, depth=2, classes=CLASSES),
]
every_network = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)


def build(config, learned=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_network(config, SHAPE, learned).eval()


def images(rows):
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(1))


@every_network
@torch.no_grad()
def test_every_label_and_none_is_another_function(config):
    network = build(config)
    x = images(1).expand(CLASSES + 1, -1, -1, -1)
    outputs = network(x, torch.full((CLASSES + 1,), 7.0), torch.arange(CLASSES + 1))
    for first in range(CLASSES + 1):
        for second in range(first):
            assert float((outputs[first] - outputs[second]).abs().max()) > 1e-4


@every_network
@torch.no_grad()
def test_a_rows_label_changes_that_row_alone(config):
    network = build(config).double()
    x, t = images(3).double(), torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64)
    before, after = network(x, t, torch.tensor([0, 1, 2])), network(x, t, torch.tensor([0, 3, 2]))
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]], rtol=0, atol=1e-12)
    assert float((before[1] - after[1]).abs().max()) > 1e-4


@every_network
@pytest.mark.parametrize("label", [-1, CLASSES + 1])
def test_labels_that_do_not_exist_are_refused(config, label):
    with pytest.raises(IndexError):
        build(config)(images(1), torch.tensor([1.0]), torch.tensor([label]))


@every_network
def test_every_label_learns(config):
    network = build(config)
    x, label = images(CLASSES + 1), torch.arange(CLASSES + 1)
    network(x, torch.full((CLASSES + 1,), 7.0), label).square().sum().backward()
    tables = [m.weight for m in network.modules() if isinstance(m, torch.nn.Embedding)]
    assert [table.shape[0] for table in tables] == [CLASSES + 1]
    gradient = tables[0].grad
    assert gradient is not None
    assert bool((gradient.abs().amax(1) > 0).all())


@every_network
def test_a_learned_variance_doubles_the_channels(config):
    x, t, label = images(2), torch.tensor([1.0, 9.0]), torch.tensor([0, 1])
    assert build(config)(x, t, label).shape == (2, 1, 8, 8)
    output = build(config, learned=True)(x, t, label)
    assert output.shape == (2, 2, 8, 8)
    assert not torch.allclose(output[:, :1], output[:, 1:])


@every_network
def test_whole_float_times_are_int_times_bitwise(config):
    network = build(config)
    x, label, times = images(3), torch.tensor([0, 1, 2]), torch.tensor([0, 500, 999])
    assert torch.equal(network(x, times, label), network(x, times.float(), label))


@every_network
@torch.no_grad()
def test_times_between_whole_ones_are_told_apart(config):
    network = build(config).double()
    x, label = images(1).double(), torch.tensor([0])
    low, middle = (network(x, torch.tensor([t], dtype=torch.float64), label) for t in (10.0, 10.5))
    assert float((low - middle).abs().max()) > 1e-5


def test_a_unet_says_what_is_wrong_with_labels():
    x, t = images(1), torch.tensor([1.0])
    with pytest.raises(ValueError, match="class_labels should be provided"):
        build(CONFIGS[0])(x, t)
    with pytest.raises(ValueError, match="class_embedding needs to be initialized"):
        build(CONFIGS[0].model_copy(update={"classes": 0}))(x, t, torch.tensor([0]))
