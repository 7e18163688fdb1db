"""The diffusion mathematics that training, tuning and sampling share: one network, seen as a VAE and as a score model.

Everything here needs only torch and pydantic (and diffusers in `network.py` and `interop/`): no Ray, DeepSpeed or
MLflow, and no files but the package format of `package.py` and diffusers' own. Importing `diffusion` or
`diffusion.config` does not load torch.
"""
