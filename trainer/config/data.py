"""Settings of the data: `data.*`."""

from typing import Annotated, Literal

from pydantic import Field

from diffusion.config import (
    Config,
)
from trainer.config.fields import Fraction, Seed


class DataConfig(Config):
    """Where the images come from and how they are split; the split has its own seed, so runs stay comparable.

    The other settings describe a source that is not prepared yet: `size` null takes the most common size, a Parquet
    column that is null is detected, and `label_column` none leaves labels out.
    """

    source: Annotated[str, Field(min_length=1)] = "digits"
    heldout_fraction: Fraction = 0.2
    split_seed: Seed = 0
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    channels: Literal["auto", 1, 3] = "auto"
    image_column: Annotated[str, Field(min_length=1)] | None = None
    label_column: Annotated[str, Field(min_length=1)] | None = None
