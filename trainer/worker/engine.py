"""DeepSpeed behind three concepts: an engine, this rank's fp32 master weights, and named fragments of them.

Under ZeRO the fp32 master weights and Adam's moments live in flat tensors, each rank holding a part. A `Fragment` says
which slice of which named parameter a piece of a flat tensor is; checkpoints and the EMA need nothing else, so they do
not depend on the stage or the number of ranks. Stage 3 replaces `torch.nn.functional.linear` for the whole process:
use one stage per process. A single rank has nobody to share with, and needs no DeepSpeed.

The engine averages the gradients and calls the optimizer, which clips them and leaves out a step that is not finite: on
the device, so that the host waits for none of it.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from trainer.checkpoint.fragments import Fragment
from trainer.config.run_config import RunConfig
from trainer.config.training import OptimConfig
from trainer.runtime.fast_import import import_uncompiled
from trainer.worker import spans
from trainer.worker.deepspeed_config import batch_shape, deepspeed_config, exchanges_at_once, is_alone
from trainer.worker.exchange import Exchange

MOMENTS = ("exp_avg", "exp_avg_sq")


def initialize(network: nn.Module, config: RunConfig, device: torch.device) -> Any:  # noqa: ANN401 - DeepSpeedEngine
    """The engine around a network that already has its initial or resumed weights: DeepSpeed's, or a single rank's."""
    world = torch.distributed.get_world_size()
    optimizer = ClippedAdamW(network.parameters(), config.optim)
    if is_alone(config, world):
        return SingleRank(network, optimizer, config, device)
    numel = sum(parameter.numel() for parameter in network.parameters())
    at_once = exchanges_at_once(config, numel, world, device.type)
    engine = deepspeed_engine(network, optimizer, deepspeed_config(config, world, at_once), device)
    engine.enable_backward_allreduce = not at_once
    optimizer.exchange = _exchange(engine.optimizer) if at_once else None
    return engine


def deepspeed_engine(
    network: nn.Module, optimizer: "ClippedAdamW", settings: dict[str, Any], device: torch.device
) -> Any:  # noqa: ANN401
    """DeepSpeed's engine, whose optimizer knows the norm of the whole gradient.

    Args:
        network: the engine's module.
        optimizer: of its parameters.
        settings: DeepSpeed's configuration.
        device: of the network.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if device.type == "cpu":
        # probing the compiled operators would need a compiler; none of them is used
        deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue]
    import_uncompiled("deepspeed.runtime.zero.muon.muon_optimizer")  # DeepSpeed asks whether the optimizer is one
    engine: Any = deepspeed.initialize(model=network, optimizer=optimizer, config=settings)[0]
    stage = engine.zero_optimization_stage()
    if stage:
        whole = lambda _: engine.optimizer._global_grad_norm.to(device)  # noqa: E731
        optimizer.global_norm = partial(_norm_over_ranks, device) if stage < 3 else whole
    return engine


class SingleRank:
    """The engine of a rank that has nobody to share with: as much of DeepSpeed's interface as is used here.

    Attributes:
        module: the network.
        optimizer: its optimizer, which is also the `basic_optimizer`: nothing is wrapped around it.
        device: of the network.
    """

    def __init__(self, module: nn.Module, optimizer: "ClippedAdamW", config: RunConfig, device: torch.device) -> None:
        """Around a network that is on its device."""
        self.module, self.device = module, device
        self.optimizer = self.basic_optimizer = optimizer
        self._micro_batches, self._done = batch_shape(config, 1).micro_batches, 0
        self._bf16 = config.training.precision == "bf16"

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401 - the network's
        """The network's outputs."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the mean over micro-batches."""
        (loss / self._micro_batches).backward()

    def step(self) -> None:
        """Count a micro-batch; after the last, take the optimizer step."""
        self._done += 1
        if self._done == self._micro_batches:
            self._done = 0
            self.optimizer.step()
            self.optimizer.zero_grad()

    def zero_optimization_stage(self) -> int:
        """Nothing is sharded."""
        return 0

    def destroy(self) -> None:
        """Nothing is held."""


def _exchange(zero: Any) -> Exchange:  # noqa: ANN401 - DeepSpeedZeroOptimizer
    """The exchange of gradients that lie as ZeRO's flat parameters do."""
    [parameters], [flat] = zero.bit16_groups, zero.bit16_groups_flat
    return Exchange(parameters, [p.storage_offset() - flat.storage_offset() for p in parameters], flat.numel())


class ClippedAdamW(torch.optim.AdamW):
    """AdamW behind clipping by the global norm; a step that is not finite changes neither weights nor its own state.

    Attributes:
        global_norm: from the gradients at hand, which may be this rank's part, the 2-norm of the global gradient.
        exchange: averages the gradients before the step; None where DeepSpeed does.
        losses_finite: whether all ranks' losses are finite, bool []; set before each step.
        norm: the 2-norm of the global gradient before clipping, float32 []; None if there was no step.
        taken: whether the step was taken, bool [].
    """

    def __init__(self, parameters: Iterable[nn.Parameter], optim: OptimConfig) -> None:
        """Fused, with the settings of a run."""
        super().__init__(
            parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
        )
        self._max_norm = optim.max_grad_norm
        self.global_norm: Callable[[list[Tensor]], Tensor] = torch.nn.utils.get_total_norm
        self.exchange: Exchange | None = None
        self.losses_finite: Tensor | None = None
        self.norm: Tensor | None = None
        self.taken: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Clip, and step where everything is finite."""
        gradients = [each.grad for group in self.param_groups for each in group["params"] if each.grad is not None]
        self.norm = self.global_norm(gradients)
        self.taken = torch.isfinite(self.norm)
        place = gradients[0].device  # the host's memory, where the optimizer's state is offloaded
        if self.losses_finite is not None:
            self.taken = self.taken & self.losses_finite
        scale = torch.clamp(self._max_norm / (self.norm + 1e-6), max=1.0)
        torch._foreach_mul_(gradients, scale.to(place))  # pyright: ignore[reportPrivateImportUsage]
        self.found_inf = (~self.taken).float().to(place)  # fused AdamW leaves everything as it is where this is 1
        super().step(closure)


def _norm_over_ranks(device: torch.device, gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all ranks' parts, on the device of the process group."""
    squares = torch.nn.utils.get_total_norm(gradients).square().to(device)
    torch.distributed.all_reduce(squares)
    return squares.sqrt()


class Masters:
    """This rank's part of the fp32 master weights and of Adam's state.

    Attributes:
        flats: one-dimensional fp32 tensors that the optimizer updates in place.
        fragments: what they hold, in the order of the network's parameters.
    """

    def __init__(self, engine: Any) -> None:  # noqa: ANN401 - DeepSpeedEngine
        """Find the masters of an engine."""
        self._engine = engine
        self._stage: int = engine.zero_optimization_stage()
        self._parameters = dict(engine.module.named_parameters())
        locate: Callable[[], tuple[list[Tensor], list[Fragment]]]
        locate = (self._replicated, self._partitioned, self._partitioned, self._fully_sharded)[self._stage]
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
        state = self._engine.basic_optimizer.state
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
        state = self._engine.basic_optimizer.state
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


def step(engine: Any, losses_finite: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - DeepSpeedEngine
    """Take the optimizer step at a gradient-accumulation boundary.

    Args:
        engine: the engine.
        losses_finite: whether all ranks' losses are finite, bool []; None for True.

    Returns:
        The 2-norm of the global gradient before clipping, float32 [], and whether the step was taken, bool []. A step
        that is not finite is not taken: weights, moments and Adam's count of steps are as they were.
    """
    optimizer: ClippedAdamW = engine.basic_optimizer
    optimizer.losses_finite, optimizer.norm, optimizer.taken = losses_finite, None, None
    if optimizer.exchange is not None:
        with record_function(spans.REDUCTION):
            engine.optimizer.averaged_gradients[0] = SimpleNamespace(flat_partition=optimizer.exchange.own_part())
    engine.step()
    if optimizer.norm is None or optimizer.taken is None:  # DeepSpeed itself has left a gradient out
        device = engine.device
        return torch.tensor(torch.inf, device=device), torch.tensor(False, device=device)
    return optimizer.norm, optimizer.taken
