"""The package that a run begins with: brought into the run's folder, verified, and compared with what is trained."""

import shutil
from pathlib import Path

from trainer.config.initial import package_folder, split_alias
from trainer.config.run_config import RunConfig
from trainer.errors import InputError
from trainer.run.paths import RunPaths
from trainer.worker.initial import InitialWeights, fitting, packaged_shapes, shapes
from trainer.worker.objective import build_objective


def prepare_initial(config: RunConfig, paths: RunPaths, image_shape: tuple[int, int, int]) -> InitialWeights:
    """Copy the package that `training.init_from` names to the run's folder, unless it is there, and see what fits.

    Raises:
        InputError: it cannot be had, is not the one that the run is named by, or nothing of it fits.
    """
    from diffusion.package import PackageError, check_files, verify_package

    expected = config.training.init_sha256
    if not paths.initial.is_dir() or _digest(paths.initial) != expected:
        source = package_folder(str(config.training.init_from)) or _fetched(config)
        shutil.rmtree(paths.initial, ignore_errors=True)
        try:
            check_files(source)  # before they are copied, and the copy, which nobody changes, is what counts
            shutil.copytree(source, paths.initial, symlinks=True)
            found = verify_package(paths.initial)
        except (PackageError, OSError) as error:
            shutil.rmtree(paths.initial, ignore_errors=True)
            raise InputError(f"training.init_from = {config.training.init_from!r}: {error}") from None
        if found != expected:
            shutil.rmtree(paths.initial)
            raise InputError(
                f"training.init_from = {config.training.init_from!r}: is package {found[:16]}… by now; the run is to "
                f"begin with {str(expected)[:16]}…"
            )
    trained = shapes(build_objective(config, image_shape, device="meta"))
    found = fitting(trained, packaged_shapes(paths.initial))
    if not found.taken:
        raise InputError(
            f"training.init_from = {config.training.init_from!r}: no part of it fits network.kind = "
            f"{config.network.kind}; allowed: a package with the same kind of network"
        )
    return found


def _digest(package: Path) -> str | None:
    from diffusion.package import PackageError, verify_package

    try:
        return verify_package(package)
    except PackageError:
        return None


def _fetched(config: RunConfig) -> Path:
    from trainer.registry.models import fetch

    name, alias = split_alias(str(config.training.init_from))
    into = Path(config.run.storage or "") / "fetched"
    return fetch(name, alias, str(config.run.tracking_uri), into)[0]
