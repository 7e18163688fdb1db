"""Networks on a GPU, with everything around them on the CPU, and float32 that means float32."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser

CPU = torch.device("cpu")


def full_precision() -> None:
    """Have float32 mean float32: GPUs would otherwise convolve in TF32, with 10 bits of mantissa."""
    backends: Any = torch.backends
    # the older flags say the same, or whoever reads them (torch.compile for GPUs does) is met with an error
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = False
    for backend in (backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn):
        backend.fp32_precision = "ieee"


def network_on(denoiser: Denoiser, device: torch.device) -> Denoiser:
    """The denoiser with its network on another device, to which inputs are copied and outputs back.

    Solvers and likelihoods stay on the CPU, where their arithmetic was tested; copying takes little time compared to a
    network evaluation.
    """
    if device == CPU:
        return denoiser
    assert isinstance(denoiser.network, torch.nn.Module), "a network that can be moved"
    full_precision()
    network = denoiser.network.to(device)

    def copy_and_evaluate(x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        return network(x.to(device), time.to(device), None if label is None else label.to(device)).to(x.device)

    return replace(denoiser, network=copy_and_evaluate)
