"""From the newest checkpoint to the model package: the EMA weights and the configuration of their network."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from diffusion.package import SCHEDULE_PREFIX, PackageConfig, save_package
from trainer.checkpoint.reader import Checkpoint, find_latest
from trainer.config.run_config import RunConfig
from trainer.data.manifest import DatasetInfo
from trainer.ema.snapshots import ema_sources
from trainer.run.manifest import CheckpointError
from trainer.run.paths import RunPaths

NETWORK_PREFIX = "network."


def package_latest(config: RunConfig, paths: RunPaths, info: DatasetInfo) -> tuple[int, str]:
    """Write the package of the newest good checkpoint.

    Returns:
        The checkpoint's step, and the package's SHA-256.

    Raises:
        CheckpointError: there is no good checkpoint.
    """
    latest = find_latest(paths.checkpoints)
    if latest.folder is None:
        reasons = "; ".join(map(str, latest.refused.values())) or "none was written"
        raise CheckpointError(f"{paths.checkpoints}: no complete checkpoint; {reasons}")
    checkpoint = Checkpoint(latest.folder)
    return checkpoint.step, package_checkpoint(config, paths, info, checkpoint, paths.package)


def package_checkpoint(
    config: RunConfig, paths: RunPaths, info: DatasetInfo, checkpoint: Checkpoint, folder: Path
) -> str:
    """Write the package of a checkpoint's EMA weights into a folder; returns its SHA-256."""
    sources = ema_sources(paths.ema, config.ema, checkpoint)
    average = sources.tensors(config.ema.sigma_rel)
    return write_package(folder, config, info.image_shape, average, info.fingerprint, info.class_names)


def write_package(
    folder: Path,
    config: RunConfig,
    image_shape: tuple[int, int, int],
    trained: dict[str, Tensor],
    dataset_fingerprint: str | None,
    class_names: Sequence[str] = (),
) -> str:
    """Write the package of averaged weights, trained on the data of this fingerprint; returns its SHA-256.

    The classes' names go along where the network has just these classes.
    """
    package = PackageConfig(
        process=config.process,
        prediction=config.objective.prediction,
        sigma_data=config.objective.sigma_data,
        network=config.network,
        image_shape=image_shape,
        solver=config.evaluation.solver,
        class_names=tuple(class_names) if len(class_names) == config.network.classes else (),
        null_label_trained=config.objective.label_dropout > 0 if config.network.classes else None,
    )
    return save_package(folder, package, package_weights(trained), dataset_fingerprint, config.training.init_sha256)


def package_weights(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained weights that sampling needs: the network's, and a learned schedule's under its prefix."""
    network = {
        name.removeprefix(NETWORK_PREFIX): value for name, value in trained.items() if name.startswith(NETWORK_PREFIX)
    }
    return network | {name: value for name, value in trained.items() if name.startswith(SCHEDULE_PREFIX)}
