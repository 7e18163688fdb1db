"""Sampling without a cluster: the same engine, in this process."""

from collections.abc import Callable

from torch import Tensor

from diffusion.config import ClassifierFree, SolverConfig
from diffusion.images import to_pixels
from sampler.batcher import Batcher
from sampler.encode import Pixels
from sampler.models import Model


def generate(
    model: Model,
    config: SolverConfig,
    seed: int,
    count: int,
    report_rows: Callable[[int], None],
    label: int | str | None = None,
    guidance: ClassifierFree | None = None,
) -> Pixels:
    """Sample images 0..count-1 of a seed.

    Args:
        model: the model to sample from.
        config: the solver.
        seed: 0..2^63 - 1.
        count: number of images.
        report_rows: called after each evaluation with its batch size.
        label: the class of all images, its number or its name, or None.
        guidance: classifier-free guidance, or None.

    Returns:
        uint8 [count, H, W, C].

    Raises:
        ValueError: settings that the model cannot take.
        NonFiniteError: the network's output holds NaN or infinity.
    """

    def evaluate(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        output = model.denoiser.output(x, t, labels)
        report_rows(len(x))
        return output

    batcher = Batcher(evaluate, max_images=count)
    try:
        x = batcher.submit(lambda images: model.solver(config, seed, images, label, guidance), range(count)).result()
    finally:
        batcher.close()
    return to_pixels(x)
