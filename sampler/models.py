"""Models to sample from: `NAME@alias` in an MLflow registry, or a package folder; always verified, never unpickled.

A read-only client of the registry. `mlflow.*.load_model` would run code that comes with a model, so it is never
called: the alias is resolved to a version, the package inside it is downloaded, its digests are checked against its
manifest, and an allow-listed network is built from its config (diffusion/package.py).
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from diffusion.config import ClassifierFree, SolverConfig
from diffusion.config.errors import masked, refuse_secret

if TYPE_CHECKING:
    from diffusion.denoiser import Denoiser
    from diffusion.package import PackageConfig
    from diffusion.solvers import Sampler

LOCK_TIMEOUT_S = 30.0
PACKAGE_PATH = "artifacts/package"
UNSAID = (
    "does not say whether it was also trained without labels (objective.label_dropout); if it was not, guidance spoils "
    "its samples"
)
"""What is wrong with guiding a model whose `null_label_trained` is None."""


class ModelError(ValueError):
    """A model that cannot be found or loaded; the message is `model: REFERENCE: what is wrong or allowed`."""


class RegistryUnavailableError(ConnectionError):
    """No registry answers at the tracking URI."""


@dataclass(frozen=True)
class Source:
    """The location of one exact model.

    Attributes:
        reference: its name for clients: `NAME@alias`, or the folder's name.
        name: the registered model's name, or the folder's.
        version: the registry's version; `local` for a folder.
        location: URI or absolute path of the package folder.
        tracking_uri: the registry it came from; None for a folder.
        package_sha256: the package's digest in the registry; None if it records none.
        signature: of the package, from the registry; None if it has none. A folder has its own in it.
    """

    reference: str
    name: str
    version: str
    location: str
    tracking_uri: str | None = None
    package_sha256: str | None = None
    signature: str | None = None


@dataclass(frozen=True)
class Model:
    """A verified package, ready to sample from; `package_sha256` is its digest in hex."""

    source: Source
    package_sha256: str
    denoiser: "Denoiser"
    config: "PackageConfig"

    def solver(
        self,
        config: SolverConfig | None,
        seed: int,
        images: Sequence[int],
        label: int | str | None = None,
        guidance: ClassifierFree | None = None,
    ) -> "Sampler":
        """A solver that draws some images of a seed from this model.

        Args:
            config: the solver; None is the package's default.
            seed: seed of the images' noise.
            images: image indices; may be empty, to check the settings alone.
            label: the class of all images, its number or its name; None samples unconditionally.
            guidance: classifier-free guidance, for class-conditional models; None is no guidance.

        Raises:
            ValueError: settings that the process or the network cannot take.
        """
        import torch

        from diffusion.solvers import ImageNoise, make_solver

        number = self.config.class_index(label)
        if guidance is not None and label is None:
            raise ValueError("guidance.kind = classifier_free: needs a label to guide towards")
        class_index = self.denoiser.null_label if number is None else number
        labels = None if class_index is None else torch.full((len(images),), class_index, dtype=torch.int64)
        noise = ImageNoise(seed, images, self.config.image_shape)
        return make_solver(config or self.config.solver, self.denoiser, noise, labels, guidance)


def default_tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the database that training writes by default."""
    storage = os.environ.get("DUALVIEW_STORAGE") or str(Path.home() / "dualview")
    return os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_url(Path(storage, "mlflow.db"))


def resolve(reference: str, tracking_uri: str | None = None) -> Source:
    """Resolve a reference to the exact model it names now; queries the registry, downloads nothing.

    Args:
        reference: a package folder's path, or `NAME@alias`.
        tracking_uri: the registry; None for `default_tracking_uri()`.

    Raises:
        ModelError: neither a folder nor a known alias, or a tracking URI with a password or a token in it.
        RegistryUnavailableError: the registry does not answer.
    """
    folder, (name, separator, alias) = Path(reference), reference.partition("@")
    if folder.is_dir() and separator and "/" not in reference:
        raise ModelError(
            f"model: {reference}: a folder, and a name of the registry; allowed: ./{reference} for the folder"
        )
    if folder.is_dir():
        folder = folder.resolve()
        return Source(folder.name, folder.name, "local", str(folder))
    if not (separator and name and alias):
        raise ModelError(f"model: {reference}: no such folder; allowed: NAME@alias, or the path of a package folder")
    uri = tracking_uri or default_tracking_uri()
    try:
        refuse_secret(uri)
    except ValueError as error:
        raise ModelError(f"tracking-uri: {masked(uri)}: {error}") from None
    return _resolve_alias(name, alias, _existing_database(uri))


def load(source: Source, device: str = "cpu", signed_by: bytes | None = None) -> Model:
    """Fetch, verify and build a model.

    Args:
        source: which.
        device: where its network is evaluated, cpu or cuda; everything else stays on the CPU.
        signed_by: the public key whose holder has to have signed it; None for anybody, or nobody.

    Raises:
        ModelError: it is not in the registry, the package is incomplete or altered, or it is not signed.
        RegistryUnavailableError: the registry does not answer.
    """
    if source.tracking_uri is None and signed_by is None:
        return _load_folder(source, Path(source.location), device, None)
    if source.tracking_uri is None:
        with TemporaryDirectory(prefix="dualview-package-") as folder:  # nobody changes a copy while it is looked at
            from diffusion.package import check_files

            try:
                check_files(Path(source.location))
                copy = shutil.copytree(source.location, Path(folder, "package"), symlinks=True)
            except (OSError, ValueError) as error:
                raise ModelError(f"model: {source.reference}: cannot be read: {_one_line(error)}") from None
            return _load_folder(source, copy, device, signed_by)
    with TemporaryDirectory(prefix="dualview-package-") as folder:
        missing = f"its version holds no {PACKAGE_PATH}: not a DualView model"
        with _registry_errors(source.reference, source.tracking_uri, missing):
            from mlflow.artifacts import download_artifacts, list_artifacts

            from diffusion.locations import check_location, files_of
            from diffusion.package import FILES

            try:
                check_location(source.location, source.tracking_uri)
                there = files_of(list_artifacts(source.location, tracking_uri=source.tracking_uri), FILES)
            except ValueError as error:
                raise ModelError(f"model: {source.reference}: {_one_line(error)}") from None
            if not there:
                raise ModelError(f"model: {source.reference}: {missing}")
            for name in there:
                fetched = download_artifacts(
                    f"{source.location}/{name}", dst_path=folder, tracking_uri=source.tracking_uri
                )
                if Path(fetched) != Path(folder, name):  # some stores keep a part of the way
                    Path(fetched).replace(Path(folder, name))
        return _load_folder(source, Path(folder), device, signed_by)


def _load_folder(source: Source, folder: Path, device: str, signed_by: bytes | None) -> Model:
    import torch

    from diffusion.device import network_on
    from diffusion.package import load_package, verify_package

    try:
        digest = verify_package(folder)
        if signed_by is not None:
            from diffusion.signature import check_signature, read_signature

            check_signature(digest, source.signature or read_signature(folder), signed_by)
        denoiser, config = load_package(folder)
    except ValueError as error:  # PackageError, or a network that does not fit its image shape
        raise ModelError(f"model: {source.reference}: {_one_line(error)}") from error
    if source.package_sha256 not in (None, digest):
        raise ModelError(f"model: {source.reference}: package {digest}; the registry says {source.package_sha256}")
    return Model(source, digest, network_on(denoiser, torch.device(device)), config)


def _existing_database(uri: str) -> str:
    """The URI, an SQLite path made absolute; ModelError if that database is missing, since MLflow would create it."""
    path = unquote(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///"):
        return uri
    if not Path(path).is_file():
        raise ModelError(
            f"tracking-uri: {uri}: no such database; set MLFLOW_TRACKING_URI or --tracking-uri to the registry's"
        )
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=LOCK_TIMEOUT_S)) as database:
            database.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error as error:
        raise ModelError(f"tracking-uri: {uri}: {error}; allowed: MLflow's database") from None
    return _sqlite_url(Path(path).resolve())


def _sqlite_url(file: Path) -> str:
    return f"sqlite:///{quote(str(file))}"


def _resolve_alias(name: str, alias: str, uri: str) -> Source:
    reference = f"{name}@{alias}"
    with _registry_errors(reference, uri, f"not in the registry at {masked(uri)}"):
        from mlflow import MlflowClient
        from mlflow.store.db import utils

        # or MLflow would make a folder with the name that is in the URL, quotes and all
        setattr(utils, "_make_parent_dirs_if_sqlite", lambda db_uri: None)  # noqa: ARG005, B010 - private
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        aliases = client.get_registered_model(name).aliases
        if alias not in aliases:
            known = ", ".join(f"{name}@{known}" for known in sorted(aliases)) or "it has no alias yet"
            raise ModelError(f"model: {reference}: no such alias; allowed: {known}")
        version = client.get_model_version(name, aliases[alias])
        location = f"{client.get_model_version_download_uri(name, version.version)}/{PACKAGE_PATH}"
    return Source(
        reference,
        name,
        str(version.version),
        location,
        uri,
        version.tags.get("package_sha256"),
        version.tags.get("package_signature"),
    )


@contextmanager
def _registry_errors(reference: str, uri: str, missing: str) -> Iterator[None]:
    """Turn MLflow's errors, which may show credentials, into ModelError or RegistryUnavailableError, and keep none."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # or it tells of its migrations
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:  # of a database whose tables this version of MLflow cannot bring up to date
        problem = f"not a database that this version of MLflow can use: {masked(_one_line(error))}"
        raise ModelError(f"tracking-uri: {masked(uri)}: {problem}") from None
    except (MlflowException, OSError) as error:
        code = getattr(error, "error_code", "INTERNAL_ERROR")
        if code == "RESOURCE_DOES_NOT_EXIST" or isinstance(error, FileNotFoundError):
            raise ModelError(f"model: {reference}: {missing}") from None
        if code == "INTERNAL_ERROR":
            problem = "no answer from the registry or its artifact store"
            raise RegistryUnavailableError(f"tracking-uri: {masked(uri)}: {problem}") from None
        raise ModelError(f"model: {reference}: {masked(_one_line(error))}") from None


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
