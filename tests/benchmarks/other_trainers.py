"""The training loops of other projects around our networks, as their own examples write them.

They are not in the lock: a loop whose package is missing says so with an ImportError.
"""
# the packages are not in the lock:
# pyright: reportMissingImports=false

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.run_config import RunConfig


def random_images(shape: tuple[int, int, int]) -> Tensor:
    """Images in [-1, 1], float32 [1024, C, H, W]."""
    return torch.rand(1024, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def endless(loader: Any) -> Iterator[Tensor]:
    """Its batches, epoch after epoch."""
    while True:
        for (images,) in loader:
            yield images


def accelerate(
    network: nn.Module, config: RunConfig, shape: tuple[int, int, int], device: torch.device
) -> Callable[[], None]:
    """diffusers' unconditional example: accelerate, a DataLoader, DDPMScheduler, EMAModel, clipping."""
    from accelerate import Accelerator
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.training_utils import EMAModel

    bf16 = config.training.precision == "bf16"
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=device.type == "cpu")
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.optim.lr, fused=True)
    data = torch.utils.data.TensorDataset(random_images(shape))
    loader: Any = torch.utils.data.DataLoader(data, config.training.global_batch_size, shuffle=True, drop_last=True)
    prepared: Any
    prepared, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    average = EMAModel(prepared.parameters(), decay=0.9999)
    average.to(device)
    scheduler: Any = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    batches = endless(loader)

    def step() -> None:
        clean = next(batches)
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(clean),), device=clean.device)
        with accelerator.accumulate(prepared):
            predicted = prepared(scheduler.add_noise(clean, noise, t), t.float(), None)
            accelerator.backward(nn.functional.mse_loss(predicted.float(), noise))
            accelerator.clip_grad_norm_(prepared.parameters(), config.optim.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        average.step(prepared.parameters())

    return step


class Conditioned(nn.Module):
    """A network of ours with the attributes that denoising-diffusion-pytorch asks for."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.channels, self.out_dim, self.self_condition = network, channels, channels, False
        self.random_or_learned_sinusoidal_cond = False

    def forward(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        """The network's output."""
        return self.network(x, t.float(), None)


def ddpm_pytorch(
    network: nn.Module, config: RunConfig, shape: tuple[int, int, int], device: torch.device
) -> Callable[[], None]:
    """denoising-diffusion-pytorch: its GaussianDiffusion and the body of its Trainer's loop."""
    from accelerate import Accelerator
    from denoising_diffusion_pytorch import GaussianDiffusion
    from ema_pytorch import EMA

    diffusion = GaussianDiffusion(
        Conditioned(network, shape[0]), image_size=shape[1], timesteps=1000, beta_schedule="cosine"
    )
    bf16 = config.training.precision == "bf16"
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=device.type == "cpu")
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=config.optim.lr, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10).to(device)
    data = torch.utils.data.TensorDataset((random_images(shape) + 1) / 2)
    loader: Any = torch.utils.data.DataLoader(data, config.training.global_batch_size, shuffle=True, drop_last=True)
    prepared: Any
    prepared, optimizer, loader = accelerator.prepare(diffusion, optimizer, loader)
    batches = endless(loader)

    def step() -> None:
        clean = next(batches)
        with accelerator.autocast():
            loss = prepared(clean)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), config.optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    return step


LOOPS = {"diffusers and accelerate": accelerate, "denoising-diffusion-pytorch": ddpm_pytorch}
