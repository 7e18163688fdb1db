"""What all configuration is: frozen pydantic models of finite numbers, and what digests of it are taken over."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=65536)]  # of a layer
Depth = Annotated[int, Field(ge=1, le=1000)]  # in layers


@dataclass(frozen=True)
class Later:
    """Marks a field that was added when there were runs already: `dropout: Annotated[float, Later("0.2")] = 0.0`.

    While such a field has its default it stays out of every digest, so that a method has the digest that it had before.

    Attributes:
        since: the version that added it.
    """

    since: str


class Config(BaseModel):
    """Base of all configuration: immutable, strict, finite numbers only, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """What digests are taken over: every field as JSON, but for a `Later` one that has its default."""
        values = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if any(isinstance(each, Later) for each in field.metadata) and value == field.get_default():
                del values[name]
            elif isinstance(value, Config):
                values[name] = value.identity()
        return values
