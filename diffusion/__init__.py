"""The theory that training, tuning and sampling share: one network, two views.

Everything here is torch and pydantic (diffusers only in `network.py` and `diffusers_folder.py`): no Ray, DeepSpeed or
MLflow, and no files but the package format of `package.py` and diffusers' own. Importing `diffusion` or
`diffusion.config` loads no torch.
"""
