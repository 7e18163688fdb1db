"""Weights that a run begins with: those of a package, by name, and what of them fits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from diffusion.package import SCHEDULE_PREFIX, WEIGHTS
from trainer.ema.export import NETWORK_PREFIX

MAX_LISTED = 6

Shape = tuple[int, ...]


@dataclass(frozen=True)
class InitialWeights:
    """How the weights of a package fit what a run trains.

    Attributes:
        taken: names of the parts that have the package's values.
        new: parts that keep their random values, with why: the package does not have them, or in another shape.
        unused: parts of the package that the run does not have.
    """

    taken: tuple[str, ...]
    new: Mapping[str, str]
    unused: tuple[str, ...]

    def describe(self) -> str:
        """All of it in one line."""
        text = f"{len(self.taken)} of {len(self.taken) + len(self.new)} parts are the package's"
        if self.new:
            listed = ", ".join(f"{name} ({why})" for name, why in list(self.new.items())[:MAX_LISTED])
            text += f"; new: {listed}{_more(len(self.new))}"
        if self.unused:
            text += f"; not used: {', '.join(self.unused[:MAX_LISTED])}{_more(len(self.unused))}"
        return text


def _more(count: int) -> str:
    return f" and {count - MAX_LISTED} more" if count > MAX_LISTED else ""


def fitting(trained: Mapping[str, Shape], packaged: Mapping[str, Shape]) -> InitialWeights:
    """Which parts of a package fit which parts of what is trained: those of the same name and shape.

    Args:
        trained: shapes by name, as an objective's state has them.
        packaged: shapes by name, as a package has them.
    """
    known = {_trained_name(name): shape for name, shape in packaged.items()}
    taken = tuple(name for name, shape in trained.items() if known.get(name) == shape)
    new = {
        name: f"{_size(known[name])} there, {_size(shape)} here" if name in known else "not there"
        for name, shape in trained.items()
        if known.get(name) != shape
    }
    return InitialWeights(taken, new, tuple(name for name in known if name not in trained))


def _trained_name(name: str) -> str:
    """The name of a packaged weight in an objective's state."""
    return name if name.startswith(SCHEDULE_PREFIX) else f"{NETWORK_PREFIX}{name}"


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a number"


def shapes(objective: nn.Module) -> dict[str, Shape]:
    """The shape of everything that an objective trains, by name."""
    return {name: tuple(value.shape) for name, value in objective.named_parameters()}


def packaged_shapes(package: Path) -> dict[str, Shape]:
    """The shapes of a package's weights, by name, from the file's header alone."""
    with safe_open(package / WEIGHTS, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def load_initial(objective: nn.Module, package: Path) -> None:
    """Give an objective's parameters the values of a package where they fit."""
    found = fitting(shapes(objective), packaged_shapes(package))
    parameters: dict[str, Tensor] = dict(objective.named_parameters())
    taken = set(found.taken)
    with safe_open(package / WEIGHTS, "pt") as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118 - no mapping
            if (ours := _trained_name(name)) in taken:
                parameters[ours].copy_(file.get_tensor(name))
