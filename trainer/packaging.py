"""From the newest checkpoint to the model package: the EMA weights, and the configuration to rebuild them."""

from torch import Tensor

from diffusion.package import SCHEDULE_PREFIX, PackageConfig, save_package
from trainer.checkpoint import Checkpoint, CheckpointError, find_latest
from trainer.config import RunConfig
from trainer.data.dataset import DatasetInfo
from trainer.paths import RunPaths

NETWORK_PREFIX = "network."


def package_latest(config: RunConfig, paths: RunPaths, info: DatasetInfo) -> tuple[int, str]:
    """Write the package of the newest good checkpoint.

    Returns:
        Its step, and the package's SHA-256.

    Raises:
        CheckpointError: there is no good checkpoint.
    """
    found = find_latest(paths.checkpoints)
    if found.folder is None:
        raise CheckpointError(
            f"{paths.checkpoints}: no complete checkpoint; {'; '.join(found.refused) or 'none was written'}"
        )
    checkpoint = Checkpoint(found.folder)
    package = PackageConfig(
        process=config.process,
        prediction=config.objective.prediction,
        sigma_data=config.objective.sigma_data,
        network=config.network,
        image_shape=info.image_shape,
        solver=config.evaluation.solver,
    )
    return checkpoint.step, save_package(paths.package, package, package_weights(checkpoint.tensors("ema")))


def package_weights(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of all that an objective trains, what sampling needs: the network, and a learned schedule under its prefix."""
    network = {
        name.removeprefix(NETWORK_PREFIX): value for name, value in trained.items() if name.startswith(NETWORK_PREFIX)
    }
    return network | {name: value for name, value in trained.items() if name.startswith(SCHEDULE_PREFIX)}
