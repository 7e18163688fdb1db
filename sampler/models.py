"""Models to sample from: `NAME@alias` of an MLflow registry, or a package folder; always verified, never unpickled.

A client of the registry that only reads. `mlflow.*.load_model` would run code that comes with a model, so it is never
called: the alias is resolved to a version, the package inside it is downloaded, its digests are checked against its
manifest, and an allow-listed network is built from its config (diffusion/package.py).
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from diffusion.config import ClassifierFree, SolverConfig

if TYPE_CHECKING:
    from diffusion.denoiser import Denoiser
    from diffusion.package import PackageConfig
    from diffusion.solvers import Sampler

PACKAGE_PATH = "artifacts/package"


class ModelError(ValueError):
    """A model that cannot be had, in one line: `model: REFERENCE: what is wrong or allowed`."""


class RegistryDown(ConnectionError):
    """No registry answers at the tracking URI."""


@dataclass(frozen=True)
class Source:
    """Where one exact model is.

    Attributes:
        reference: what names it to clients: `NAME@alias`, or a folder's name.
        name: the registered model's name, or the folder's.
        version: the registry's version; `local` for a folder.
        location: URI or absolute path of the package folder.
        tracking_uri: the registry it came from; None for a folder.
        package_sha256: what the registry says the package is; None where nothing says.
    """

    reference: str
    name: str
    version: str
    location: str
    tracking_uri: str | None = None
    package_sha256: str | None = None


@dataclass(frozen=True)
class Model:
    """A verified package, ready to sample from."""

    source: Source
    package_sha256: str
    denoiser: "Denoiser"
    config: "PackageConfig"

    def solver(
        self,
        config: SolverConfig | None,
        seed: int,
        images: Sequence[int],
        label: int | None = None,
        guidance: ClassifierFree | None = None,
    ) -> "Sampler":
        """A solver for some images of a seed, on this model's process.

        Args:
            config: None is the package's default.
            seed: of the images' noise.
            images: their numbers; none are needed to find out whether the settings will do.
            label: the class of all of them; None is no class in particular.
            guidance: classifier-free, for models with classes.

        Raises:
            ValueError: settings that the process or the network cannot take.
        """
        import torch

        from diffusion.solvers import ImageNoise, make_solver

        classes = self.config.network.classes
        if label is not None and not 0 <= label < classes:
            allowed = f"0 to {classes - 1}" if classes else "none, this model was trained without classes"
            raise ValueError(f"label = {label}: allowed: {allowed}")
        if guidance is not None and label is None:
            raise ValueError("guidance.kind = classifier_free: needs a label to guide towards")
        shown = self.denoiser.null_label if label is None else label
        labels = None if shown is None else torch.full((len(images),), shown, dtype=torch.int64)
        noise = ImageNoise(seed, images, self.config.image_shape)
        return make_solver(config or self.config.solver, self.denoiser, noise, labels, guidance)


def default_tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the database where training records a run that was told no other."""
    storage = os.environ.get("DUALVIEW_STORAGE") or str(Path.home() / "dualview")
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage}/mlflow.db"


def resolve(reference: str, tracking_uri: str | None = None) -> Source:
    """Find which exact model a reference means now: one call to the registry, nothing is downloaded.

    Args:
        reference: a package folder's path, or `NAME@alias`.
        tracking_uri: the registry; None for `default_tracking_uri()`.

    Raises:
        ModelError: neither a folder nor a known alias.
        RegistryDown: the registry does not answer.
    """
    folder = Path(reference)
    if folder.is_dir():
        folder = folder.resolve()
        return Source(folder.name, folder.name, "local", str(folder))
    name, separator, alias = reference.partition("@")
    if not (separator and name and alias):
        raise ModelError(f"model: {reference}: no such folder; allowed: NAME@alias, or the path of a package folder")
    return _find(name, alias, _checked(tracking_uri or default_tracking_uri()))


def load(source: Source) -> Model:
    """Fetch, verify and build a model, on the CPU.

    Raises:
        ModelError: it is not in the registry, or it is not a whole, unaltered package.
        RegistryDown: the registry does not answer.
    """
    if source.tracking_uri is None:
        return _load_folder(source, Path(source.location))
    with TemporaryDirectory(prefix="dualview-package-") as folder:
        missing = f"its version holds no {PACKAGE_PATH}: not a DualView model"
        with _registry_errors(source.reference, source.tracking_uri, missing):
            from mlflow.artifacts import download_artifacts

            package = download_artifacts(source.location, dst_path=folder, tracking_uri=source.tracking_uri)
        return _load_folder(source, Path(package))


def _load_folder(source: Source, folder: Path) -> Model:
    from diffusion.package import load_package, verify_package

    try:
        digest = verify_package(folder)
        denoiser, config = load_package(folder)
    except ValueError as error:  # PackageError, or a network that does not fit its image shape
        raise ModelError(f"model: {source.reference}: {_one_line(error)}") from error
    if source.package_sha256 not in (None, digest):
        raise ModelError(f"model: {source.reference}: package {digest}; the registry says {source.package_sha256}")
    return Model(source, digest, denoiser, config)


def _checked(uri: str) -> str:
    """The URI, an SQLite path made absolute; a read-only client must not create the database that is missing."""
    path = uri.removeprefix("sqlite:///")
    if path == uri:
        return uri
    if not Path(path).is_file():
        raise ModelError(
            f"tracking-uri: {uri}: no such database; set MLFLOW_TRACKING_URI or --tracking-uri to the registry's"
        )
    return f"sqlite:///{Path(path).resolve()}"


def _find(name: str, alias: str, uri: str) -> Source:
    reference = f"{name}@{alias}"
    with _registry_errors(reference, uri, f"not in the registry at {_without_credentials(uri)}"):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        aliases = client.get_registered_model(name).aliases
        if alias not in aliases:
            known = ", ".join(f"{name}@{known}" for known in sorted(aliases)) or "it has no alias yet"
            raise ModelError(f"model: {reference}: no such alias; allowed: {known}")
        version = client.get_model_version(name, aliases[alias])
        location = f"{client.get_model_version_download_uri(name, version.version)}/{PACKAGE_PATH}"
    return Source(reference, name, str(version.version), location, uri, version.tags.get("package_sha256"))


@contextmanager
def _registry_errors(reference: str, uri: str, missing: str) -> Iterator[None]:
    """Say what MLflow raises as a ModelError or RegistryDown, without the URI's credentials."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        code = getattr(error, "error_code", "INTERNAL_ERROR")
        if code == "RESOURCE_DOES_NOT_EXIST" or isinstance(error, FileNotFoundError):
            raise ModelError(f"model: {reference}: {missing}") from error
        if code == "INTERNAL_ERROR":
            where = _without_credentials(uri)
            raise RegistryDown(f"tracking-uri: {where}: no answer from the registry or its artifact store") from error
        raise ModelError(f"model: {reference}: {_without_credentials(_one_line(error))}") from error


def _without_credentials(text: str) -> str:
    return re.sub(r"://[^/@\s]*@", "://", text)


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
