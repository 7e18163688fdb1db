"""The networks that a configuration may name."""
# `kind` comes first wherever a model is shown, so it is declared first; frozen models may narrow it:
# pyright: reportIncompatibleVariableOverride=false

from typing import Annotated, Literal

from pydantic import Field, model_validator

from diffusion.config.base import Config, Count


class NetworkOptions(Config):
    """What every network has: `classes` labels to be conditioned on, 0 for none."""

    kind: str
    classes: Annotated[int, Field(ge=0)] = 0


class UNetConfig(NetworkOptions):
    """diffusers' UNet2DModel; one resolution per entry of `channels`, self-attention where `attention` says so."""

    kind: Literal["unet"] = "unet"
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64)
    attention: tuple[bool, ...] = (False, True)
    layers_per_block: Count = 1
    norm_groups: Count = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _fields_fit(self) -> "UNetConfig":
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention has {len(self.attention)} entries; allowed: one per entry of channels, {len(self.channels)}"
            )
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(f"channels has {width}, which norm_groups = {self.norm_groups} does not divide")
        return self

    def check_image(self, height: int, width: int) -> None:
        """Refuse images that cannot be halved once per further resolution.

        Raises:
            ValueError: naming the sides and what divides them.
        """
        factor = 2 ** (len(self.channels) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"network.channels has {len(self.channels)} resolutions, so image sides must be divisible by {factor}; "
                f"the images are {height} x {width}: use fewer channels or another size"
            )


class DiTConfig(NetworkOptions):
    """diffusers' DiT: a transformer on patches, told t and label through adaptive layer norms (Peebles & Xie, 2023)."""

    kind: Literal["dit"] = "dit"
    patch_size: Count = 2
    layers: Count = 6
    heads: Count = 4
    head_width: Count = 32

    @model_validator(mode="after")
    def _positions_fit(self) -> "DiTConfig":
        if self.heads * self.head_width % 4:
            raise ValueError(
                f"heads x head_width = {self.heads} x {self.head_width}; allowed: a product that 4 divides, "
                "for the sine and cosine of two coordinates"
            )
        return self

    def check_image(self, height: int, width: int) -> None:
        """Refuse images that are not squares of whole patches.

        Raises:
            ValueError: naming the sides and what divides them.
        """
        if height != width or height % self.patch_size:
            raise ValueError(
                f"network.patch_size = {self.patch_size} needs square images whose side it divides; "
                f"the images are {height} x {width}: use another patch_size, or network.kind = unet"
            )


class MLPConfig(NetworkOptions):
    """Residual multilayer perceptron on the flattened input, for 2-D data and tests."""

    kind: Literal["mlp"] = "mlp"
    width: Annotated[int, Field(ge=2)] = 128
    depth: Count = 3

    def check_image(self, height: int, width: int) -> None:
        """Any size will do."""


NetworkConfig = Annotated[UNetConfig | DiTConfig | MLPConfig, Field(discriminator="kind")]
