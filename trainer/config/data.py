"""Settings of the data: `data.*`."""

from typing import Annotated, Literal

from pydantic import Field

from diffusion.config import Config, Later
from trainer.config.fields import Fraction, Seed


class DataConfig(Config):
    """Where the images come from and how they are split; the split has its own seed, so runs stay comparable.

    `split` auto takes the splits that the source has (train and validation or test, by the names of its folders or
    Parquet files) and a seeded one where it has none; `heldout_fraction` and `split_seed` are for the seeded one.

    The other settings describe a source that is not prepared yet: `size` null takes the size of most images, a Parquet
    column that is null is detected, `label_column` none leaves labels out, and `white_level` is the value of white in
    images of more than 8 bits a channel (null: 65535).
    """

    source: Annotated[str, Field(min_length=1)] = "digits"
    heldout_fraction: Fraction = 0.2
    split_seed: Seed = 0
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    channels: Literal["auto", 1, 3] = "auto"
    image_column: Annotated[str, Field(min_length=1)] | None = None
    label_column: Annotated[str, Field(min_length=1)] | None = None
    split: Annotated[Literal["auto", "source", "seeded"], Later("0.2")] = "auto"
    white_level: Annotated[Annotated[int, Field(ge=1, le=65535)] | None, Later("0.2")] = None
