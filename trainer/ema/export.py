"""From the newest checkpoint to the model package: the EMA weights, and the configuration to rebuild them."""

from pathlib import Path

from torch import Tensor

from diffusion.package import SCHEDULE_PREFIX, PackageConfig, save_package
from trainer.checkpoint.manifest import CheckpointError
from trainer.checkpoint.reader import Checkpoint, find_latest
from trainer.config.run_config import RunConfig
from trainer.data.manifest import DatasetInfo
from trainer.ema.snapshots import averages
from trainer.run.paths import RunPaths

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
    return checkpoint.step, package_checkpoint(config, paths, info, checkpoint, paths.package)


def package_checkpoint(
    config: RunConfig, paths: RunPaths, info: DatasetInfo, checkpoint: Checkpoint, folder: Path
) -> str:
    """Write the package of a checkpoint's EMA weights into a folder; returns its SHA-256."""
    made_of = averages(paths.ema, config.ema, checkpoint)
    return write_package(folder, config, info.image_shape, made_of.tensors(config.ema.sigma_rel))


def write_package(
    folder: Path, config: RunConfig, image_shape: tuple[int, int, int], trained: dict[str, Tensor]
) -> str:
    """Write the package of averaged weights; returns its SHA-256."""
    package = PackageConfig(
        process=config.process,
        prediction=config.objective.prediction,
        sigma_data=config.objective.sigma_data,
        network=config.network,
        image_shape=image_shape,
        solver=config.evaluation.solver,
    )
    return save_package(folder, package, package_weights(trained))


def package_weights(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of all that an objective trains, what sampling needs: the network, and a learned schedule under its prefix."""
    network = {
        name.removeprefix(NETWORK_PREFIX): value for name, value in trained.items() if name.startswith(NETWORK_PREFIX)
    }
    return network | {name: value for name, value in trained.items() if name.startswith(SCHEDULE_PREFIX)}
