"""A denoiser as a folder: `model.safetensors`, `config.json` and a SHA-256 `manifest.json`; never pickle.

Training writes such folders, the registry stores them, and the sampler verifies and loads them. A package may come from
somebody else: nothing in it is run or names a path, and what does not fit is refused before memory is taken for it.
"""
# safetensors.torch is partly typed:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion import durable
from diffusion.bounded import read_bounded
from diffusion.config import Config, Dpmpp2M, NetworkConfig, Positive, ProcessConfig, SolverConfig
from diffusion.config.errors import describe
from diffusion.denoiser import Denoiser
from diffusion.network import build_network
from diffusion.prediction import Prediction
from diffusion.process.learned_schedule import LearnedLogSnr
from diffusion.process.sde import Process, make_process

WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"
SIGNATURE = "signature"  # which a package may have beside them; see `diffusion.signature`
MAX_TEXT_BYTES = 16 * 2**20
FILES = {MANIFEST: MAX_TEXT_BYTES, CONFIG: MAX_TEXT_BYTES, WEIGHTS: math.inf}
"""The files of a package, and how many bytes each may have."""
MAX_SIDE, MAX_CHANNELS = 8192, 256  # of an image
MAX_BUFFER_VALUES = 2**24  # which a network computes for itself, where it has fewer weights
MAX_VALUES = 3 * 50_000_000  # of an image: the largest that data are read of, in colours
SCHEDULE_PREFIX = "schedule."  # a learned schedule's weights, beside the network's


class PackageConfig(Config):
    """Everything needed to rebuild the denoiser and to sample from it.

    Format 1 conditioned networks on other times; its weights would be slightly wrong here and are refused.

    Attributes:
        format: always `dualview-package`.
        format_version: always 2.
        process: the forward process.
        prediction: what the network predicts.
        sigma_data: standard deviation of the data that an `edm` network assumes.
        network: the architecture.
        image_shape: (C, H, W).
        solver: default solver for sampling.
        null_label_trained: whether the network was also trained without labels, which classifier-free guidance and
            sampling without a label need; None without classes, and in packages that do not say.
        class_names: of the network's classes, in their order; empty where they have none.
    """

    format: Literal["dualview-package"] = "dualview-package"
    format_version: Literal[2] = 2
    process: ProcessConfig
    prediction: Prediction
    sigma_data: Positive = 0.5
    network: NetworkConfig = Field(discriminator="kind")
    image_shape: tuple[
        Annotated[int, Field(ge=1, le=MAX_CHANNELS)],
        Annotated[int, Field(ge=1, le=MAX_SIDE)],
        Annotated[int, Field(ge=1, le=MAX_SIDE)],
    ]
    solver: SolverConfig = Field(default=Dpmpp2M(), discriminator="kind")
    null_label_trained: bool | None = None
    class_names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_of_all_classes(self) -> Self:
        if self.class_names and not len(set(self.class_names)) == len(self.class_names) == self.network.classes:
            raise ValueError(f"class_names has {len(self.class_names)}; allowed: {self.network.classes} different ones")
        return self

    @model_validator(mode="after")
    def _images_fit_into_memory(self) -> Self:
        if (values := math.prod(self.image_shape)) > MAX_VALUES:
            raise ValueError(f"image_shape has {values} values; allowed: at most {MAX_VALUES}")
        return self

    def class_index(self, label: int | str | None) -> int | None:
        """The number of a class, given by its name or its number; None for none.

        Text is a name, where there is a class of it, and else a number.

        Raises:
            ValueError: there is no such class.
        """
        if isinstance(label, str):
            if label in self.class_names:
                return self.class_names.index(label)
            if not (label.isascii() and label.isdigit()):
                raise ValueError(f"label = {label!r}: allowed: {self._allowed_labels}")
            label = int(label)
        if label is not None and not 0 <= label < self.network.classes:
            raise ValueError(f"label = {label}: allowed: {self._allowed_labels}")
        return label

    @property
    def _allowed_labels(self) -> str:
        if not self.network.classes:
            return "none, this model was trained without classes"
        numbers = f"0 to {self.network.classes - 1}"
        if not self.class_names:
            return numbers
        return f"{numbers}, or {', '.join(self.class_names[:8])}{', …' if len(self.class_names) > 8 else ''}"


class PackageError(ValueError):
    """A folder that is not a complete, unaltered package; the message names the file and what is wrong."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_sha256(digests: dict[str, str]) -> str:
    """The digest of a package: SHA-256 of the canonical JSON of its files' digests.

    Args:
        digests: SHA-256 of each file, by file name.
    """
    return hashlib.sha256(json.dumps(digests, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save_package(
    folder: Path,
    config: PackageConfig,
    weights: dict[str, Tensor],
    dataset_fingerprint: str | None = None,
    initialised_from: str | None = None,
) -> str:
    """Write a package; the manifest is written last, so a half-written folder never verifies.

    Args:
        folder: where to write; created if missing.
        config: of the denoiser.
        weights: state dictionary of the network, and with prefix `schedule.` of a learned schedule.
        dataset_fingerprint: SHA-256 of the data that the weights were trained on, which the manifest keeps; it is not
            part of the package's own digest.
        initialised_from: SHA-256 of the package whose weights training began with, which the manifest keeps likewise.

    Returns:
        The package's SHA-256.
    """
    durable.make_folder(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in sorted(weights.items())}, folder / WEIGHTS)
    settings = config.identity()  # without settings that were added later and have their default
    for name, unsaid in (("null_label_trained", None), ("class_names", [])):  # as packages were before they said
        if settings[name] == unsaid:
            del settings[name]
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    digests = {name: file_sha256(folder / name) for name in (CONFIG, WEIGHTS)}
    digest = package_sha256(digests)
    for name in digests:
        durable.sync(folder / name)
    values = {"files": digests, "package_sha256": digest}
    if dataset_fingerprint is not None:
        values["dataset_fingerprint"] = dataset_fingerprint
    if initialised_from is not None:
        values["initialised_from"] = initialised_from
    durable.write_text(folder / MANIFEST, json.dumps(values, indent=2, sort_keys=True) + "\n")
    return digest


def trained_on(folder: Path) -> str | None:
    """Fingerprint of the data set that a package was trained on; None where its manifest does not say."""
    try:
        values: dict[str, str] = json.loads(read_bounded(folder / MANIFEST, MAX_TEXT_BYTES))
        return values.get("dataset_fingerprint")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def verify_package(folder: Path) -> str:
    """Check every file against the manifest.

    Args:
        folder: the package.

    Returns:
        The package's SHA-256.

    Raises:
        PackageError: no manifest, a missing or altered file, another file, a link, or a manifest that contradicts
            itself.
    """
    check_files(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        digests = {str(name): str(digest) for name, digest in manifest["files"].items()}
        claimed = str(manifest["package_sha256"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise PackageError(f"{folder / MANIFEST}: not a package manifest") from None
    if set(digests) != {CONFIG, WEIGHTS}:
        raise PackageError(f"{folder / MANIFEST}: lists {sorted(digests)}; a package has {CONFIG} and {WEIGHTS}")
    for name, expected in digests.items():
        try:
            actual = file_sha256(folder / name)
        except OSError as error:
            raise PackageError(f"{folder / name}: {error.strerror}") from None
        if actual != expected:
            raise PackageError(f"{folder / name}: SHA-256 is {actual[:12]}…, the manifest says {expected[:12]}…")
    if package_sha256(digests) != claimed:
        raise PackageError(f"{folder / MANIFEST}: its package_sha256 is not that of its files")
    return claimed


def check_files(folder: Path) -> None:
    """Refuse a folder with other files than those of a package, with links, or with texts that no package has.

    Raises:
        PackageError: what it has.
    """
    try:
        kinds = {path.name: path.lstat() for path in folder.iterdir()}
    except FileNotFoundError:
        kinds = {}
    except OSError as error:
        raise PackageError(f"{folder}: {error.strerror}") from None
    if MANIFEST not in kinds:
        raise PackageError(f"{folder}: no {MANIFEST}; this is not a complete package")
    if missing := [name for name in FILES if name not in kinds]:
        raise PackageError(f"{folder / missing[0]}: missing")
    for name, status in sorted(kinds.items()):
        if problem := _problem(name, status):
            raise PackageError(f"{folder / name}: {problem}")


def _problem(name: str, status: os.stat_result) -> str | None:
    """What is wrong with a file, by its name and kind."""
    if name not in (*FILES, SIGNATURE):
        return f"not a file of a package; allowed: {', '.join(FILES)}"
    if not stat.S_ISREG(status.st_mode):
        return "a link or no file; allowed: regular files"
    if status.st_size > FILES.get(name, MAX_TEXT_BYTES):
        return f"{status.st_size} bytes; allowed: at most {MAX_TEXT_BYTES}"
    return None


def load_package(folder: Path) -> tuple[Denoiser, PackageConfig]:
    """Verify a package and rebuild its denoiser, in evaluation mode on the CPU.

    Args:
        folder: the package.

    Returns:
        The denoiser and the package's configuration.

    Raises:
        PackageError: it does not verify, its configuration is invalid, or its weights do not fit its network.
    """
    verify_package(folder)
    try:
        config = PackageConfig.model_validate_json((folder / CONFIG).read_bytes())
    except OSError as error:
        raise PackageError(f"{folder / CONFIG}: {error.strerror}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["loc"] == ("format_version",):
            raise PackageError(
                f"{folder / CONFIG}: format_version = {problem['input']}; allowed: 2; networks of format 1 were told "
                "other times and must be trained again"
            ) from error
        raise PackageError(f"{folder / CONFIG}: {describe(error, PackageConfig)}") from error
    process, network = _build(folder, config)
    _load_weights(network, process, folder / WEIGHTS)
    needs_label = config.null_label_trained is False
    null_label = None if needs_label else config.network.classes or None
    denoiser = Denoiser(network.eval(), process, config.prediction, config.sigma_data, null_label, needs_label)
    return denoiser, config


def _build(folder: Path, config: PackageConfig) -> tuple[Process, nn.Module]:
    """The process and the network of a package; the network takes memory only once the file has its weights.

    Raises:
        PackageError: the network does not fit the images, or the file has other weights.
    """
    try:
        process = make_process(config.process)
        with torch.device("meta"):
            network = build_denoiser_network(config)
        expected = dict(network.state_dict())
        if isinstance(process.schedule, LearnedLogSnr):
            own = process.schedule.state_dict()
            expected |= {f"{SCHEDULE_PREFIX}{name}": tensor for name, tensor in own.items()}
        _check_weights(folder / WEIGHTS, expected)
        buffers, weights = (sum(each.numel() for each in some) for some in (network.buffers(), expected.values()))
        if buffers > max(MAX_BUFFER_VALUES, weights):  # such as a table of all positions, which is in no file
            raise PackageError(f"{folder / CONFIG}: the network has {buffers} constants beside {weights} weights")
        return process, build_denoiser_network(config)
    except PackageError:
        raise
    except (ValueError, RuntimeError, MemoryError, OverflowError, ZeroDivisionError, TypeError) as error:
        raise PackageError(f"{folder / CONFIG}: {str(error) or type(error).__name__}") from error


def _check_weights(path: Path, expected: dict[str, Tensor]) -> None:
    """Raise PackageError unless a safetensors file has these tensors, by its header alone."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names ^ set(expected)):
                problem = "is missing" if name in expected else "is not one of the network's"
                raise PackageError(f"{path}: weights do not fit the network of {CONFIG}: {name[:100]!r} {problem}")
            for name in sorted(names):
                found, wanted = file.get_slice(name), list(expected[name].shape)
                if found.get_dtype() != "F32" or found.get_shape() != wanted:
                    raise PackageError(
                        f"{path}: weights do not fit the network of {CONFIG}: {name!r} is {found.get_dtype()} "
                        f"{found.get_shape()}; allowed: F32 {wanted}"
                    )
    except (OSError, SafetensorError) as error:
        raise PackageError(f"{path}: {error}") from error


def build_denoiser_network(config: PackageConfig) -> nn.Module:
    """A freshly initialised network of a package's architecture.

    Raises:
        ValueError: the network does not fit the image shape.
    """
    return build_network(config.network, config.image_shape, config.process.reverse_variance == "learned")


def _load_weights(network: nn.Module, process: Process, path: Path) -> None:
    """Load a safetensors file whose names and shapes must be exactly those of the network and a learned schedule.

    Raises:
        PackageError: they are not, or a weight is not finite.
    """
    try:
        weights = load_file(path)
        for name, tensor in weights.items():
            if not bool(torch.isfinite(tensor).all()):
                raise PackageError(f"{path}: {name!r} has weights that are not finite")
        if isinstance(process.schedule, LearnedLogSnr):
            own = {name: weights.pop(name) for name in list(weights) if name.startswith(SCHEDULE_PREFIX)}
            process.schedule.load_state_dict({name.removeprefix(SCHEDULE_PREFIX): own[name] for name in own})
            process.schedule.requires_grad_(False)
        network.load_state_dict(weights, strict=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise PackageError(f"{path}: weights do not fit the network of {CONFIG}: {error}") from error
