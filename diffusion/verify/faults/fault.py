"""A deliberate fault: a wrong version of one function or method, in place for as long as it is applied."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """A wrong version of something.

    Attributes:
        text: what is wrong.
        statement: the number of the statement that must catch it.
        holders: the modules and classes that hold the name.
        name: the function or method.
        wrong: given the right one, the wrong one.
    """

    text: str
    statement: int
    holders: tuple[Any, ...]
    name: str
    wrong: Callable[[Any], Any]

    @contextmanager
    def applied(self) -> Generator[None]:
        """Put the wrong version in place, and the right one back."""
        right = getattr(self.holders[0], self.name)
        for holder in self.holders:
            setattr(holder, self.name, self.wrong(right))
        try:
            yield
        finally:
            for holder in self.holders:
                setattr(holder, self.name, right)
