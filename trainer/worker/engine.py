"""DeepSpeed behind three concepts: an engine, this rank's fp32 master weights, and named fragments of them.

Under ZeRO the fp32 master weights and Adam's moments live in flat tensors, each rank holding a part. A `Fragment` says
which slice of which named parameter a piece of a flat tensor is; checkpoints and the EMA need nothing else, so they do
not depend on the stage or the number of ranks. Stage 3 replaces `torch.nn.functional.linear` for the whole process:
use one stage per process.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoint.fragments import Fragment
from trainer.config.run_config import RunConfig
from trainer.worker.deepspeed_config import deepspeed_config

MOMENTS = ("exp_avg", "exp_avg_sq")


def initialize(network: nn.Module, config: RunConfig, device: torch.device) -> Any:  # noqa: ANN401 - DeepSpeedEngine
    """A DeepSpeed engine around a network that already has its initial or resumed weights."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if device.type == "cpu":
        # probing the compiled operators would need a compiler; none of them is used
        deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue]
    optim = config.optim
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
    )
    engine, *_ = deepspeed.initialize(
        model=network, optimizer=optimizer, config=deepspeed_config(config, torch.distributed.get_world_size())
    )
    return engine


class Masters:
    """This rank's part of the fp32 master weights and of Adam's state.

    Attributes:
        flats: one-dimensional fp32 tensors that the optimizer updates in place.
        fragments: what they hold, in the order of the network's parameters.
    """

    def __init__(self, engine: Any, stage: int) -> None:  # noqa: ANN401 - DeepSpeedEngine
        """Find the masters of an engine at ZeRO `stage`."""
        self._engine = engine
        self._stage = stage
        self._parameters = dict(engine.module.named_parameters())
        locate: Callable[[], tuple[list[Tensor], list[Fragment]]]
        locate = (self._replicated, self._partitioned, self._partitioned, self._fully_sharded)[stage]
        self.flats, self.fragments = locate()

    def _replicated(self) -> tuple[list[Tensor], list[Fragment]]:
        """Stage 0: every rank has all parameters and looks after its own slice of each."""
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        flats: list[Tensor] = []
        fragments: list[Fragment] = []
        for name, parameter in self._parameters.items():
            share = -(-parameter.numel() // world)
            offset = min(rank * share, parameter.numel())
            numel = min(share, parameter.numel() - offset)
            if numel:
                fragments.append(Fragment(name, offset, numel, len(flats), 0))
                flats.append(parameter.detach().view(-1).narrow(0, offset, numel))
        return flats, fragments

    def _partitioned(self) -> tuple[list[Tensor], list[Fragment]]:
        """Stages 1 and 2: one flat partition per parameter group."""
        fragments = []
        for name, parameter in self._parameters.items():
            mapping = parameter._hp_mapping
            if mapping is not None:
                where, what = mapping.hp_fragment_address, mapping.lp_fragment_address
                fragments.append(Fragment(name, what.start, what.numel, mapping.param_group_index, where.start))
        return [flat.detach() for flat in self._state_keys()], fragments

    def _fully_sharded(self) -> tuple[list[Tensor], list[Fragment]]:
        """Stage 3: every parameter is cut into equal parts, one per rank, the last ones padded."""
        optimizer, rank = self._engine.optimizer, torch.distributed.get_rank()
        fragments = []
        for name, parameter in self._parameters.items():
            flat, start, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
            offset = min(rank * share, parameter.ds_numel)
            numel = min(share, parameter.ds_numel - offset)
            if numel:
                fragments.append(Fragment(name, offset, numel, flat, start))
        return [flat.detach() for flat in self._state_keys()], fragments

    def _state_keys(self) -> list[Tensor]:
        """The tensors that key Adam's state: the flats, or the parameters at stage 0."""
        if self._stage == 0:
            return list(self._parameters.values())
        optimizer = self._engine.optimizer
        return optimizer.fp32_partitioned_groups_flat if self._stage == 3 else optimizer.single_partition_of_fp32_groups

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The full shape of every parameter, also where only a part is here."""
        return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in self._parameters.items()}

    def moments(self, kind: str) -> list[Tensor]:
        """Adam's `exp_avg` or `exp_avg_sq`, aligned with `flats`; after at least one step."""
        state = self._adam().state
        if self._stage == 0:
            whole = [state[self._parameters[f.name]][kind].view(-1) for f in self.fragments]
            return [tensor.narrow(0, f.offset, f.numel) for tensor, f in zip(whole, self.fragments, strict=True)]
        return [state[flat][kind] for flat in self._state_keys()]

    def restore_moments(self, step: int, read: Callable[[str, str, int, int], Tensor]) -> None:
        """Give Adam the state of a checkpoint; call before the first step.

        Args:
            step: optimizer steps taken.
            read: (kind, parameter name, offset, numel) -> fp32 values.
        """
        state = self._adam().state
        for key in self._state_keys():
            moments = {kind: torch.zeros_like(key, requires_grad=False) for kind in MOMENTS}
            state[key] = {"step": torch.tensor(float(step), device=key.device), **moments}
        if self._stage == 0:
            for name, parameter in self._parameters.items():
                for kind in MOMENTS:
                    state[parameter][kind].view(-1).copy_(read(kind, name, 0, parameter.numel()))
            return
        for kind in MOMENTS:
            flats = self.moments(kind)
            for fragment in self.fragments:
                fragment.of(flats).copy_(read(kind, fragment.name, fragment.offset, fragment.numel))

    def _adam(self) -> torch.optim.Optimizer:
        """torch's AdamW, from inside ZeRO's wrapper."""
        return self._engine.optimizer if self._stage == 0 else self._engine.optimizer.optimizer


def step(engine: Any, stage: int) -> float:  # noqa: ANN401 - DeepSpeedEngine
    """Take the optimizer step at a gradient-accumulation boundary.

    Returns:
        The 2-norm of the global gradient before clipping. Where it is not finite, neither weights nor moments have
        changed: ZeRO drops such a step by itself, and at stage 0 the gradient is dropped here.
    """
    if stage > 0:
        engine.step()
        return float(engine.get_global_grad_norm())
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    finite = math.isfinite(norm)
    if not finite:
        engine.zero_grad()
        engine.set_gradient_accumulation_boundary(False)  # the engine counts the micro-batch, and takes no step
    engine.step()
    if not finite:
        engine.set_gradient_accumulation_boundary(None)  # the engine's own count says so again
    return norm
