"""What a job asks for: bundles of resources, each whole on one node, that together make a gang.

Amounts are Ray's: CPUs, GPUs, bytes of memory, and custom resources, counted in ten-thousandths. Labels are Ray's label
selectors: `H100`, `!T4`, `in(A100,H100)` or `!in(T4,L4)` for the value of a node's label.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCALE = 10_000  # Ray's own precision
NODE_LABEL = "ray.io/node-id"
DRIVER_BYTES = 512 * 2**20  # a process that imports torch and Ray, and Ray's supervisor of it

Amount = Annotated[float, Field(ge=0, lt=1e14, allow_inf_nan=False)]
LabelText = Annotated[str, Field(pattern=r"^(!?[\w./:-]+|!?in\([\w./:-]+(,[\w./:-]+)*\))$", max_length=500)]
LABEL_KEY = r"[A-Za-z0-9][\w./-]{0,199}"
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Bundle(BaseModel):
    """Resources of one process, on one node.

    Attributes:
        resources: Ray's name of a resource -> amount.
        labels: name of a node's label -> which values will do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    resources: dict[str, Amount]
    labels: dict[Annotated[str, Field(pattern=f"^{LABEL_KEY}$")], LabelText] = {}

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        """Amounts alone, as the trainer reports them, and as jobs were stored before there were labels."""
        if isinstance(value, dict):
            fields = cast("dict[object, object]", value)
            return fields if isinstance(fields.get("resources"), dict) else {"resources": fields}
        return value


Gang = list[Bundle]
DRIVER = Bundle(resources={"memory": DRIVER_BYTES})


@dataclass(frozen=True)
class Kind:
    """A bundle, to be compared and hashed.

    Attributes:
        amounts: names of resources, sorted, and ten-thousandths of them; none is zero.
        labels: names of labels, sorted, and which values will do.
    """

    amounts: tuple[tuple[str, int], ...]
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, bundle: Bundle) -> "Kind":
        """The kind of a bundle."""
        amounts = ((name, round(amount * SCALE)) for name, amount in sorted(bundle.resources.items()))
        return cls(tuple((name, amount) for name, amount in amounts if amount), tuple(sorted(bundle.labels.items())))

    def resources(self) -> list[tuple[str, float]]:
        """Names of resources and how much of each."""
        return [(name, amount / SCALE) for name, amount in self.amounts]

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels will do."""
        return all(matches(selector, labels.get(name)) for name, selector in self.labels)

    def __str__(self) -> str:
        text = ", ".join(format_amount(name, amount) for name, amount in self.resources()) or "nothing"
        return text + "".join(f" where {name} is {selector}" for name, selector in self.labels)


@dataclass(frozen=True)
class Shape:
    """All that admission knows of what a job asks for; jobs of equal shapes are interchangeable.

    Attributes:
        gangs: alternatives, in order of preference; the bundles of each, in order.
        driver: what the command itself takes.
    """

    gangs: tuple[tuple[Kind, ...], ...]
    driver: Kind

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.gangs, self.driver)))  # thousands of bundles are hashed once

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]

    @cached_property
    def counts(self) -> tuple[Mapping[Kind, int], ...]:
        """Of each alternative, how many bundles of each kind."""
        return tuple(Counter(gang) for gang in self.gangs)

    @classmethod
    def of(cls, gangs: Sequence[Sequence[Bundle]], driver: Bundle) -> "Shape":
        """The shape of a job."""
        return cls(tuple(tuple(Kind.of(bundle) for bundle in gang) for gang in gangs), Kind.of(driver))


def matches(selector: str, value: str | None) -> bool:
    """Whether a label's value, None where a node has no such label, is what a selector asks for."""
    wanted = selector.removeprefix("!")
    several = re.fullmatch(r"in\((.*)\)", wanted)
    found = value in (several[1].split(",") if several else [wanted])
    return found != selector.startswith("!")


def format_gang(gang: Iterable[Kind]) -> str:
    """A gang as text: `2 x (1 CPU, 1 GPU)`."""
    return " + ".join(f"{count} x ({kind})" for kind, count in Counter(gang).items())


def format_amount(name: str, amount: float) -> str:
    """An amount as text: `1 CPU`, `0.5 GPU`, `512 MiB memory`."""
    if name.endswith("memory"):
        for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
            if amount >= size:
                return f"{amount / size:.3g} {unit} {name}"
    return f"{amount:g} {name}"


def parse_gang(text: str, option: str = "--resources") -> Gang:
    """Parse comma-separated amounts and `@label=value`, after `N*` for N processes, joined by `+`.

    Raises:
        ValueError: the text is not of that form.
    """
    gang: Gang = []
    for part in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d{1,5})\s*\*)?\s*([^@]+)((?:@[^@]+)*)\s*", part)
        if not match or (match[1] and not int(match[1])):
            raise ValueError(f"{option} {text!r}")
        resources = dict(_amount(each) for each in match[2].split(","))
        labels = dict(parse_label(each) for each in match[3].split("@")[1:])
        gang += [Bundle(resources=resources, labels=labels)] * int(match[1] or 1)
    return gang


def parse_label(text: str) -> tuple[str, str]:
    """Parse `NAME=VALUE`, a label and which values will do.

    Raises:
        ValueError: the text is not of that form.
    """
    match = re.fullmatch(rf"\s*({LABEL_KEY})\s*=\s*(\S.*?)\s*", text)
    if not match:
        raise ValueError(f"{text!r}")
    Bundle(resources={}, labels={match[1]: match[2]})
    return match[1], match[2]


def _amount(text: str) -> tuple[str, float]:
    match = re.fullmatch(r"\s*([A-Za-z][\w:./-]*)\s*=\s*(\d+(?:\.\d*)?|\.\d+)([KMGT]?)\s*", text)
    if not match:
        raise ValueError(f"{text!r}")
    return match[1], float(match[2]) * UNITS.get(match[3], 1)
