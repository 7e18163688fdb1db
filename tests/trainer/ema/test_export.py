"""The package is the EMA of the newest good checkpoint."""

import pytest
import torch

from diffusion.network import build_network
from diffusion.package import load_package, verify_package
from tests.oracles.checkpoints import CONFIG, flip, write
from trainer.data.manifest import DatasetInfo
from trainer.ema.export import package_latest
from trainer.run.manifest import CheckpointError
from trainer.run.paths import RunPaths

INFO = DatasetInfo("digits", "0" * 64, (1, 4, 4), 100, 70, 10)


def test_the_package_holds_the_ema_of_the_newest_good_checkpoint(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(CONFIG.network, INFO.image_shape)
    parameters = {f"network.{name}": p.detach() for name, p in network.named_parameters()}
    parameters["log_variance.values"] = torch.zeros(3)  # trained beside the network, and no part of the model
    paths = RunPaths(tmp_path)
    write(paths.checkpoints, 3, 2, parameters)
    flip(write(paths.checkpoints, 6, 2, {name: p * 2 for name, p in parameters.items()}) / "rank-00000.safetensors")
    step, digest = package_latest(CONFIG, paths, INFO)
    assert step == 3
    assert digest == verify_package(paths.package)
    denoiser, config = load_package(paths.package)
    assert (config.process, config.network, config.solver) == (CONFIG.process, CONFIG.network, CONFIG.evaluation.solver)
    assert isinstance(denoiser.network, torch.nn.Module)
    for name, parameter in denoiser.network.named_parameters():
        assert torch.equal(parameter, parameters[f"network.{name}"] * 0.5)


def test_without_a_good_checkpoint_there_is_no_package_and_the_reason_is_told(tmp_path):
    paths = RunPaths(tmp_path)
    with pytest.raises(CheckpointError, match="no complete checkpoint; none was written"):
        package_latest(CONFIG, paths, INFO)
    flip(write(paths.checkpoints, 6, 1) / "rank-00000.safetensors")
    with pytest.raises(CheckpointError, match="altered since it was written"):
        package_latest(CONFIG, paths, INFO)
