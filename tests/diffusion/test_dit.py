"""The transformer: with and without labels, at float times, and the images it refuses."""

import json

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from diffusion.config import DdpmProcess, DiTConfig
from diffusion.denoiser import Denoiser
from diffusion.network import build_network
from diffusion.package import PackageConfig, load_package, save_package
from diffusion.process.sde import make_process

SHAPE = (3, 8, 8)
CONFIG = DiTConfig(layers=2, heads=2, head_width=8)
every_kind = pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
conditional = pytest.mark.parametrize("classes", [0, 4])


def build(classes=0, learned=False, **fields):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_network(CONFIG.model_copy(update={"classes": classes, **fields}), SHAPE, learned)


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@conditional
@every_kind
def test_every_parameter_takes_part(classes, learned):
    network = build(classes, learned)
    label = torch.arange(classes + 1) if classes else None
    output = network(draw(classes + 1, *SHAPE), torch.arange(classes + 1) * 100.0, label)
    assert output.shape == (classes + 1, 6 if learned else 3, 8, 8)
    (output * draw(*output.shape, seed=2)).sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    # a key's bias adds one constant to all of a softmax's logits: its true gradient is zero
    assert [name for name in without if not name.endswith("to_k.bias")] == []


@conditional
@every_kind
def test_the_number_of_parameters_is_that_of_its_layers(classes, learned):
    width, patch, out = 16, 4 * 3, 4 * (6 if learned else 3)

    def linear(inputs, outputs):
        return inputs * outputs + outputs

    time_and_label = linear(256, width) + linear(width, width) + (classes + 1) * width
    attention, mlp = 4 * linear(width, width), linear(width, 4 * width) + linear(4 * width, width)
    block = time_and_label + linear(width, 6 * width) + attention + mlp
    expected = linear(patch, width) + 2 * block + linear(width, 2 * width) + linear(width, out)
    assert sum(p.numel() for p in build(classes, learned).parameters()) == expected


def test_training_mode_drops_no_labels_and_draws_nothing():
    network = build(classes=4)
    x, t, label = draw(64, *SHAPE), torch.full((64,), 9.0), torch.arange(64) % 4
    state = torch.random.get_rng_state()
    training = network.train()(x, t, label)
    assert torch.equal(training, network.eval()(x, t, label))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_rows_without_a_label_take_the_row_for_none():
    network = build(classes=4).eval()
    x, t = draw(2, *SHAPE), torch.tensor([3.0, 5.0])
    none = network(x, t)
    assert torch.equal(none, network(x, t, torch.tensor([4, 4])))
    assert not torch.allclose(none, network(x, t, torch.tensor([0, 4]))[:1])
    with pytest.raises(IndexError):
        network(x, t, torch.tensor([5, 0]))


@conditional
@torch.no_grad()
def test_whole_float_times_are_int_times_bitwise_and_others_lie_between(classes):
    network = build(classes).eval()
    x = draw(3, *SHAPE)
    whole = torch.tensor([0, 500, 999])
    assert torch.equal(network(x, whole), network(x, whole.float()))
    low, middle, high = (network(x[:1], torch.tensor([t])) for t in (500.0, 500.5, 501.0))
    assert not torch.allclose(low, middle, rtol=0, atol=1e-6)
    assert float((middle - low).abs().max()) < 2 * float((high - low).abs().max())


@conditional
def test_rows_do_not_mix(classes):
    network = build(classes).eval().double()
    x, t = draw(3, *SHAPE).double(), torch.tensor([3.0, 900.0, 40.0], dtype=torch.float64)
    together = network(x, t)
    assert together.dtype == torch.float64
    for row in range(3):
        torch.testing.assert_close(network(x[row : row + 1], t[row : row + 1]), together[row : row + 1])


def test_where_a_patch_lies_matters():
    network = build().eval()
    x = torch.zeros(1, *SHAPE)
    x[:, :, :2, :2] = 1
    moved = x.roll((4, 4), dims=(2, 3))
    t = torch.tensor([10.0])
    assert not torch.allclose(network(x, t).roll((4, 4), dims=(2, 3)), network(moved, t), rtol=0, atol=1e-4)


def test_labels_matter_through_the_denoiser_and_a_package(tmp_path):
    process = DdpmProcess(num_train_timesteps=10, reverse_variance="learned")
    config = PackageConfig(
        process=process, prediction="v", network=CONFIG.model_copy(update={"classes": 4}), image_shape=SHAPE
    )
    network = build(4, learned=True).eval()
    save_package(tmp_path, config, network.state_dict())
    loaded, _ = load_package(tmp_path)
    denoiser = Denoiser(network, make_process(process), "v", null_label=4)
    x, t = draw(2, *SHAPE), torch.tensor([1, 10])
    assert torch.equal(loaded.output(x, t), denoiser.output(x, t))
    assert torch.equal(denoiser.x0(x, t), denoiser.x0(x, t, torch.tensor([4, 4])))
    assert not torch.allclose(denoiser.x0(x, t), denoiser.x0(x, t, torch.tensor([0, 1])))


@pytest.mark.parametrize("sides", [(8, 6), (7, 7), (9, 9)])
def test_images_that_are_no_squares_of_patches_are_refused(sides):
    with pytest.raises(ValueError, match=f"patch_size = 2 needs square .* {sides[0]} x {sides[1]}"):
        build_network(CONFIG, (1, *sides))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": 1, "head_width": 2}, "heads x head_width = 1 x 2; allowed: a product that 4 divides"),
        ({"heads": 3, "head_width": 5}, "heads x head_width = 3 x 5"),
        ({"patch_size": 0}, "greater than or equal to 1"),
        ({"classes": -1}, "greater than or equal to 0"),
    ],
)
def test_transformers_that_cannot_exist_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        DiTConfig.model_validate_json(json.dumps(values))


def test_the_narrowest_valid_transformer_runs():
    network = build_network(DiTConfig(layers=1, heads=4, head_width=1, patch_size=1), (1, 2, 2)).eval()
    assert isinstance(network, nn.Module)
    assert torch.isfinite(network(torch.zeros(1, 1, 2, 2), torch.tensor([1.0]))).all()
