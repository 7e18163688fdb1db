"""Settings of the training: `optim.*`, `ema.*` and `training.*`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from diffusion.config import (
    Config,
    Count,
    Later,
    Positive,
)
from trainer.config.fields import Fraction, Width
from trainer.config.rates import ConstantRate, RateSchedule


class OptimConfig(Config):
    """AdamW with linear warm-up, by default to a constant rate, so that a run may be lengthened as it is."""

    lr: Positive = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    max_grad_norm: Positive = 1.0
    schedule: Annotated[RateSchedule, Later("0.2")] = ConstantRate()

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of a step, counted from 1, of `steps`: lr (step / warmup_steps), then lr times the schedule."""
        if step <= self.warmup_steps:
            return self.lr * (step / self.warmup_steps)
        return self.lr * self.schedule.factor(step, self.warmup_steps, steps)


class EmaConfig(Config):
    """Power-function EMA: widths of profiles relative to the training so far.

    Two tracks are kept, with snapshots each `snapshot_every` steps that are thinned out as training goes on. The model
    has the width `sigma_rel`: a track's own, or one made of the snapshots, which the tracks must span.
    """

    sigma_rel: Width = 0.1
    tracks: tuple[Width, Width] = (0.05, 0.1)
    snapshot_every: Count = 8

    @property
    def span(self) -> tuple[float, float]:
        """The widths that can be made of the tracks with an error of about one percent."""
        return self.tracks[0], min(0.28, 1.5 * self.tracks[1])

    @model_validator(mode="after")
    def _spanned(self) -> "EmaConfig":
        if not self.tracks[0] < self.tracks[1]:
            raise ValueError(f"tracks = {list(self.tracks)}; allowed: two widths, the smaller first")
        low, high = self.span
        if not low <= self.sigma_rel <= high:
            raise ValueError(f"sigma_rel = {self.sigma_rel}; allowed: {low:g} to {high:g}, which the tracks span")
        return self


class AugmentConfig(Config):
    """Random changes of a training image, drawn anew each time it is used; evaluation sees the images as they are.

    `horizontal_flip` mirrors every second image; `crop_padding` pads by so many reflected pixels on each side and crops
    the image's size back out anywhere.
    """

    horizontal_flip: bool = False
    crop_padding: Annotated[int, Field(ge=0, le=256)] = 0


class TrainingConfig(Config):
    """How long, with how large a global batch, in which precision, and what is done about NaN and infinity.

    `dequantise` uniform trains on continuous data (diffusion.likelihood.quantization), which have a density.

    `skip` leaves a step with a non-finite loss or gradient out on all ranks; after `max_skips` in a row the weights of
    the last good checkpoint are taken up again, once for each checkpoint.

    `init_from` names a package whose weights the run begins with, where they fit by name and shape: its folder, a
    run's, or NAME@alias of the registry. `init_sha256`, its digest, is filled in, and is part of the method instead.
    """

    steps: Count = 1500
    global_batch_size: Annotated[int, Field(ge=1, le=2**24)] = 128
    precision: Literal["fp32", "bf16"] = "fp32"
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skips: Count = 5
    augment: AugmentConfig = AugmentConfig()
    dequantise: Literal["none", "uniform"] = "none"
    init_from: Annotated[Annotated[str, Field(min_length=1)] | None, Later("0.2")] = None
    init_sha256: Annotated[Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None, Later("0.2")] = None
