"""`python -m tests.integration.gradient STAGE RANK WORLD STORE`: a finite loss with an infinite gradient.

The network is sqrt(w x^2) at w = 0: its value is 0 and its derivative with respect to w is infinite, on the last rank;
on the others x is 0. Prints the norm that `trainer.worker.engine.step` returns and whether any weight has changed.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore

from trainer.config.parallel import ParallelConfig
from trainer.config.run_config import RunConfig
from trainer.worker.engine import Masters, initialize, step


class Steep(nn.Module):
    """Finite value, infinite slope."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(self.w * x**2)


stage, rank, world = map(int, sys.argv[1:4])
os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0"}
dist.init_process_group("gloo", store=FileStore(sys.argv[4], world), rank=rank, world_size=world)
config = RunConfig(parallel=ParallelConfig.model_validate({"workers": world, "zero_stage": stage}))
engine = initialize(Steep(), config, torch.device("cpu"))
masters = Masters(engine)
before = [flat.clone() for flat in masters.flats]
loss = engine(torch.full((4,), float(rank == world - 1))).sum()
assert torch.isfinite(loss)
engine.backward(loss)
norm, taken = step(engine)
assert not taken
unchanged = all(torch.equal(old, new) for old, new in zip(before, masters.flats, strict=True))
print(f"norm {norm} unchanged {unchanged}", flush=True)
dist.barrier()
# gloo's threads let go of Python objects late; one that does so in a finalising interpreter aborts the process
os._exit(0)
