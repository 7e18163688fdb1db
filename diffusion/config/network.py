"""Configuration of the networks."""
# `kind` comes first wherever a model is shown, so it is declared first; frozen models may narrow it:
# pyright: reportIncompatibleVariableOverride=false

from typing import Annotated, Literal

from pydantic import Field, model_validator

from diffusion.config.base import Config, Depth, Later, Width

MAX_RESOLUTIONS, MAX_LAYERS = 12, 100  # of a UNet, and of each resolution
MAX_HELD = 2**33  # values that a network has of one image at a time: 32 GiB in float32
MAX_TOKENS = 2**20  # of one image, each of which attends to all others


class NetworkOptions(Config):
    """The fields that every network has.

    Attributes:
        kind: which network.
        classes: number of labels for conditioning; 0 is an unconditional network.
    """

    kind: str
    classes: Annotated[int, Field(ge=0, le=10**6)] = 0


class UNetConfig(NetworkOptions):
    """diffusers' UNet2DModel, a convolutional UNet with self-attention.

    Attributes:
        channels: width of each resolution, from the image's down; each further one halves height and width.
        attention: whether each resolution has self-attention.
        layers_per_block: residual layers per resolution.
        norm_groups: groups of the group norms; must divide every width.
        dropout: dropout probability in the residual layers.
        head_width: channels of an attention head; must divide the widths that have attention. None is one head.
    """

    kind: Literal["unet"] = "unet"
    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=MAX_RESOLUTIONS)] = (32, 64)
    attention: tuple[bool, ...] = (False, True)
    layers_per_block: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = 1
    norm_groups: Width = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    head_width: Annotated[Width | None, Later("0.2")] = None

    @model_validator(mode="after")
    def _fields_fit(self) -> "UNetConfig":
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention has {len(self.attention)} entries; allowed: one per entry of channels, {len(self.channels)}"
            )
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(f"channels has {width}, which norm_groups = {self.norm_groups} does not divide")
        attended = [width for width, has in zip(self.channels, self.attention, strict=True) if has]
        for width in [*attended, self.channels[-1]]:  # the middle of the network has attention too
            if self.head_width is not None and width % self.head_width:
                raise ValueError(f"channels has {width}, which head_width = {self.head_width} does not divide")
        return self

    def check_image(self, height: int, width: int) -> None:
        """Refuse images that cannot be halved once for each further resolution, or that are too large for any memory.

        Args:
            height: of the images, in pixels.
            width: of the images, in pixels.

        Raises:
            ValueError: naming the sides and what must divide them, or what there is too much of.
        """
        factor = 2 ** (len(self.channels) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"network.channels has {len(self.channels)} resolutions, so image sides must be divisible by {factor}; "
                f"the images are {height} x {width}: use fewer channels or another size"
            )
        pixels = [height * width // 4**level for level in range(len(self.channels))]
        layers = [places * channels for places, channels in zip(pixels, self.channels, strict=True)]
        # the way up reads each layer of the way down, the last one beside as much of its own
        held = (self.layers_per_block + 1) * sum(layers) + 2 * max(layers)
        attended = [places for places, has in zip(pixels, self.attention, strict=True) if has]
        _check_memory(held, max([*attended, pixels[-1]]), height, width)


class DiTConfig(NetworkOptions):
    """diffusers' DiT: a transformer on patches, conditioned through adaptive layer norms (Peebles & Xie, 2023).

    Attributes:
        patch_size: side of a patch, in pixels.
        layers: number of transformer blocks.
        heads: attention heads of a block.
        head_width: width of a head; tokens have heads x head_width entries, a multiple of 4.
    """

    kind: Literal["dit"] = "dit"
    patch_size: Width = 2
    layers: Depth = 6
    heads: Depth = 4
    head_width: Width = 32

    @model_validator(mode="after")
    def _positions_fit(self) -> "DiTConfig":
        if self.heads * self.head_width % 4:
            raise ValueError(
                f"heads x head_width = {self.heads} x {self.head_width}; allowed: a product that 4 divides, "
                "for the sine and cosine of two coordinates"
            )
        return self

    def check_image(self, height: int, width: int) -> None:
        """Refuse images that are not squares of whole patches, or that are too large for any memory.

        Args:
            height: of the images, in pixels.
            width: of the images, in pixels.

        Raises:
            ValueError: naming the sides and what must divide them, or what there is too much of.
        """
        if height != width or height % self.patch_size:
            raise ValueError(
                f"network.patch_size = {self.patch_size} needs square images whose side it divides; "
                f"the images are {height} x {width}: use another patch_size, or network.kind = unet"
            )
        tokens = (height // self.patch_size) ** 2
        of_a_token = 8 * self.heads * self.head_width  # itself, queries, keys and values, and four times as many hidden
        _check_memory(tokens * of_a_token, tokens, height, width)


class MLPConfig(NetworkOptions):
    """A residual multilayer perceptron on the flattened input, for two-dimensional data and tests.

    Attributes:
        width: of the hidden layers, at least 2.
        depth: number of residual layers.
    """

    kind: Literal["mlp"] = "mlp"
    width: Annotated[Width, Field(ge=2)] = 128
    depth: Depth = 3

    def check_image(self, height: int, width: int) -> None:
        """Accept images of any size: the weights grow with them, and more than anything else."""


def _check_memory(held: int, tokens: int, height: int, width: int) -> None:
    """Refuse what one image of height x width pixels would take of memory: its values, or tokens that attend."""
    if held > MAX_HELD or tokens > MAX_TOKENS:
        raise ValueError(
            f"the network holds {held} values and attends to {tokens} places of an image of {height} x {width}; "
            f"allowed: at most {MAX_HELD} and {MAX_TOKENS}: use smaller images, or a smaller network"
        )


NetworkConfig = Annotated[UNetConfig | DiTConfig | MLPConfig, Field(discriminator="kind")]
