"""What a worker trains: the objective of the configuration, around a newly initialised network."""

import torch

from diffusion.denoiser import Denoiser
from diffusion.network import build_network
from diffusion.objective import Objective
from diffusion.process.sde import make_process
from trainer.config.run_config import RunConfig
from trainer.runtime.device import prepare_network


def build_objective(config: RunConfig, image_shape: tuple[int, int, int], device: str = "cpu") -> Objective:
    """The objective around a newly initialised network; everything that is trained is a submodule of it.

    Args:
        config: the run's configuration.
        image_shape: (C, H, W).
        device: where the network is made; `meta` for its shapes alone.
    """
    process = make_process(config.process)
    with torch.device(device):
        network = build_network(config.network, image_shape, process.reverse_variance == "learned")
    prepare_network(network, config.parallel)
    settings = config.objective
    null_label = config.network.classes or None
    return Objective(settings, Denoiser(network, process, settings.prediction, settings.sigma_data, null_label))
