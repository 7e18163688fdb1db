"""The registered model as MLflow runs it: `models.py` copies this file into the model, and MLflow runs the copy.

Input: a table with columns `seed` and `image`, N rows; output: images, uint8 [N, H, W, C]. Each image is the one that
the sampler service makes for the same seed and image number.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class SampledImages(PythonModel):
    """Samples from the package with its default solver."""

    def load_context(self, context: PythonModelContext) -> None:
        """Verify and load the package."""
        from diffusion.package import load_package

        self.denoiser, self.config = load_package(Path(context.artifacts["package"]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None) -> np.ndarray:  # noqa: ARG002 # pyright: ignore
        """Images for the rows (seed, image) of a DataFrame, in their order."""
        import torch

        from diffusion.images import to_pixels
        from diffusion.solvers import ImageNoise, solve

        pixels = np.empty((len(model_input), *self.config.image_shape[1:], self.config.image_shape[0]), dtype=np.uint8)
        seeds = model_input["seed"].to_numpy()
        for seed in np.unique(seeds):
            rows = np.flatnonzero(seeds == seed)
            noise = ImageNoise(
                int(seed), [int(i) for i in model_input["image"].to_numpy()[rows]], self.config.image_shape
            )
            with torch.inference_mode():
                pixels[rows] = to_pixels(solve(self.denoiser, noise, self.config.solver))
        return pixels


set_model(SampledImages())
