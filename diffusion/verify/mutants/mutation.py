"""One deliberate fault: a mutant of a function or method takes the original's place for as long as it is applied."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutation:
    """A function or method, and how to make the mutant that replaces it.

    Attributes:
        text: what the mutant does wrong, in one line.
        claim: number of the claim whose checks must fail under the mutant.
        targets: modules and classes in which the name is bound; importing modules bind a function too.
        name: the function's or method's name in all of them.
        mutant: maps the original callable to the mutant.
    """

    text: str
    claim: int
    targets: tuple[Any, ...]
    name: str
    mutant: Callable[[Any], Any]

    @contextmanager
    def applied(self) -> Generator[None]:
        """A context in which every target holds the mutant; the original is restored on leaving, errors included."""
        original = getattr(self.targets[0], self.name)
        for target in self.targets:
            setattr(target, self.name, self.mutant(original))
        try:
            yield
        finally:
            for target in self.targets:
                setattr(target, self.name, original)
