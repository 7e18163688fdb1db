"""Every word of the configuration builds, trains and is packaged: one backward pass each, without Ray."""

import pytest
import torch

from diffusion.package import PackageConfig, load_package, save_package
from trainer.config.load import apply_sets, validate
from trainer.config.run_config import RunConfig
from trainer.ema.export import package_weights
from trainer.worker.objective import build_objective

SHAPE = (1, 4, 4)
BASE = {"network": {"kind": "mlp", "width": 16, "depth": 1}, "process": {"num_train_timesteps": 50}}
TABLE = "process.schedule.betas=[" + ", ".join(["0.02"] * 50) + "]"
VARIANTS = [
    *(
        [f"process.kind={process}", f"process.schedule.kind={schedule}"]
        for process in ("ddpm", "vp", "sub_vp", "ve")
        for schedule in ("linear", "scaled_linear", "quadratic", "cosine", "sigmoid", "laplace", "edm", "geometric")
    ),
    *([f"process.kind={process}", "process.num_train_timesteps=50", "process.schedule.kind=table", TABLE]
      for process in ("ddpm", "vp", "sub_vp", "ve")),
    *([f"process.kind={process}", "process.schedule.kind=learned", "objective.weighting.kind=vlb"]
      for process in ("vp", "sub_vp", "ve")),
    *([f"objective.prediction={prediction}"] for prediction in ("epsilon", "score", "x0", "v", "edm")),
    *([f"objective.prediction={prediction}", "process.schedule.zero_terminal_snr=true"] for prediction in ("x0", "v")),
    *(
        [f"objective.weighting.kind={weighting}", f"process.kind={process}"]
        for weighting in ("simple", "vlb", "likelihood", "snr", "min_snr", "p2", "edm", "sigmoid", "adaptive")
        for process in ("ddpm", "vp", "ve")
    ),
    *([f"process.reverse_variance={variance}"] for variance in ("beta", "beta_tilde", "learned")),
    ["network.kind=dit", "network.layers=1", "network.heads=2", "network.head_width=8", "network.classes=3"],
    ["network.kind=unet", "network.channels=[8, 8]", "network.norm_groups=4", "network.classes=3"],
    ["network.classes=3", "objective.prediction=edm", "process.kind=ve", "process.schedule.kind=edm"],
]  # fmt: skip


def config_of(sets: list[str]) -> RunConfig:
    return validate(apply_sets(BASE, sets))


@pytest.mark.parametrize("sets", VARIANTS, ids=" ".join)
def test_a_variant_trains_and_is_packaged(sets, tmp_path):
    config = config_of(sets)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = build_objective(config, SHAPE)
        x_0, eps = torch.rand(16, *SHAPE) * 2 - 1, torch.randn(16, *SHAPE)
    process = objective.denoiser.process
    t = process.time_from_fraction((torch.arange(16, dtype=torch.float64) + 0.5) / 16)
    classes = config.network.classes
    label = torch.arange(16) % (classes + 1) if classes else None
    losses, epsilon_mse = objective(x_0, t, eps, label)
    assert bool(torch.isfinite(losses).all())
    assert bool((epsilon_mse >= 0).all())
    losses.mean().backward()
    gradients = {name: parameter.grad for name, parameter in objective.named_parameters()}
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    assert any(bool(gradient.any()) for gradient in gradients.values() if gradient is not None)
    package = PackageConfig(
        process=config.process,
        prediction=config.objective.prediction,
        sigma_data=config.objective.sigma_data,
        network=config.network,
        image_shape=SHAPE,
    )
    save_package(tmp_path, package, package_weights(dict(objective.state_dict())))
    loaded, _ = load_package(tmp_path)
    with torch.no_grad():
        objective.eval()
        assert torch.equal(loaded.x0(x_0, t, label), objective.denoiser.x0(x_0, t, label))


@pytest.mark.parametrize(
    "sets", [sets for sets in VARIANTS if "process.schedule.kind=learned" not in sets], ids=" ".join
)
def test_a_variant_meets_its_network_on_the_networks_device(sets):
    """On the meta device, where mixing with a tensor on the CPU is an error as it is on a GPU; t is on the CPU.

    A learned schedule gives values back to the CPU, and the meta device has none to give.
    """
    config = config_of(sets)
    objective = build_objective(config, SHAPE).to("meta")
    there = torch.empty(16, *SHAPE, device="meta")
    t = objective.denoiser.process.time_from_fraction((torch.arange(16, dtype=torch.float64) + 0.5) / 16)
    label = torch.arange(16) % (config.network.classes + 1) if config.network.classes else None
    losses, epsilon_mse = objective(there, t, there, label)
    losses.mean().backward()
    assert {losses.device.type, epsilon_mse.device.type} == {"meta"}
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in objective.parameters())
