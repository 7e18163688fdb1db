"""The base of all configuration: frozen, strict pydantic models of finite numbers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Base of all configuration: immutable, strict, finite numbers only, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
