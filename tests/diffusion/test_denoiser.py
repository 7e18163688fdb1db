"""A denoiser is one object seen four ways; what its network is told."""

import pytest
import torch

from diffusion.config import DdpmProcess, SubVpProcess, VeProcess, VpProcess
from diffusion.denoiser import Denoiser
from diffusion.process.sde import make_process
from diffusion.tensors import expand_to

PROCESSES = {config.kind: make_process(config) for config in (DdpmProcess(), VpProcess(), SubVpProcess(), VeProcess())}
VALID = [
    (name, kind)
    for name in PROCESSES
    for kind in ("epsilon", "score", "x0", "v", "edm")
    if not (kind == "v" and name in ("sub_vp", "ve"))
]


def raw(x, time, label=None):
    return torch.cos(3 * x + expand_to(time / 300, x))


def batch(name):
    x = torch.randn(40, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.linspace(0.05, 0.9, 40, dtype=torch.float64)
    return x, (1000 * t).long() if name == "ddpm" else t


@pytest.mark.parametrize(("name", "prediction"), VALID)
def test_a_denoiser_is_one_object_seen_four_ways(name, prediction):
    process = PROCESSES[name]
    denoiser = Denoiser(raw, process, prediction, sigma_data=0.3)
    x, t = batch(name)
    alpha, sigma = expand_to(process.alpha(t), x), expand_to(process.sigma(t), x)
    torch.testing.assert_close(denoiser.score(x, t), -denoiser.epsilon(x, t) / sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(alpha * denoiser.x0(x, t) + sigma * denoiser.epsilon(x, t), x, rtol=1e-9, atol=1e-11)
    v = alpha * denoiser.epsilon(x, t) - sigma * denoiser.x0(x, t)
    torch.testing.assert_close(denoiser.v(x, t), v, rtol=1e-8, atol=1e-9)
    own = {"epsilon": denoiser.epsilon, "x0": denoiser.x0, "v": denoiser.v}.get(prediction)
    time = process.network_time(t).double()
    if prediction == "edm":
        c_in = 1 / torch.sqrt((sigma / alpha) ** 2 + 0.3**2)
        torch.testing.assert_close(denoiser.output(x, t), raw(c_in * x / alpha, time), rtol=1e-10, atol=1e-12)
    else:
        assert torch.equal(own(x, t) if own else -denoiser.epsilon(x, t), raw(x, time))


@pytest.mark.parametrize(("name", "expected"), [("ddpm", [0.0, 499.0, 999.0]), ("vp", [1.0, 500.0, 1000.0])])
def test_networks_are_told_steps_from_0_or_continuous_time_times_t(name, expected):
    heard = []

    def network(x, time, label):
        heard.append((time, label))
        return x

    t = torch.tensor([1, 500, 1000])
    times = t if name == "ddpm" else t.double() / 1000
    Denoiser(network, PROCESSES[name], "epsilon").epsilon(torch.zeros(3, 1, 1, 1), times)
    ((time, label),) = heard
    assert time.tolist() == pytest.approx(expected)
    assert time.dtype == torch.float32
    assert label is None


@pytest.mark.parametrize(
    ("null_label", "given", "heard"),
    [(None, None, None), (5, None, [5, 5]), (5, [1, 5], [1, 5]), (None, [1, 0], [1, 0])],
)
def test_rows_without_a_label_get_the_null_label(null_label, given, heard):
    seen = []

    def network(x, time, label):
        seen.append(label)
        return x

    denoiser = Denoiser(network, PROCESSES["ddpm"], "x0", null_label=null_label)
    label = None if given is None else torch.tensor(given)
    for function in (denoiser.output, denoiser.x0, denoiser.epsilon, denoiser.score, denoiser.v):
        function(torch.zeros(2, 1, 1, 1), torch.tensor([3, 4]), label)
    assert [None if actual is None else actual.tolist() for actual in seen] == [heard] * 5


def test_with_a_learned_variance_the_first_half_of_the_channels_is_the_prediction():
    process = make_process(DdpmProcess(reverse_variance="learned"))
    denoiser = Denoiser(lambda x, time, label: torch.cat([raw(x, time), x**2], 1), process, "epsilon")
    x, t = batch("ddpm")
    assert denoiser.learned_variance
    prediction, interpolation = denoiser.split(denoiser.output(x, t))
    assert interpolation is not None
    assert torch.equal(prediction, denoiser.epsilon(x, t))
    assert torch.equal(interpolation, x**2)
    plain = Denoiser(raw, PROCESSES["ddpm"], "epsilon")
    assert not plain.learned_variance
    assert plain.split(x) == (x, None)
    for function in ("epsilon", "x0", "score", "v"):
        assert torch.equal(getattr(denoiser, function)(x, t), getattr(plain, function)(x, t))


@pytest.mark.parametrize("process", [SubVpProcess(), VeProcess()], ids=lambda process: process.kind)
def test_v_is_refused_where_variance_is_not_preserved(process):
    with pytest.raises(ValueError, match=r"v needs alpha\^2 \+ sigma\^2 = 1.*use epsilon"):
        Denoiser(lambda x, time, label: x, make_process(process), "v")
