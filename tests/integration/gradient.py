"""`python -m tests.integration.gradient STAGE`: a finite loss with an infinite gradient, through the real engine.

The network is sqrt(w x^2) at w = 0: its value is 0 and its derivative with respect to w is infinite. Prints the norm
that `trainer.worker.engine.step` returns and whether any weight has changed.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

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


os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
stage = int(sys.argv[1])
config = RunConfig(parallel=ParallelConfig.model_validate({"workers": 1, "zero_stage": stage}))
engine = initialize(Steep(), config, torch.device("cpu"))
masters = Masters(engine, stage)
before = [flat.clone() for flat in masters.flats]
loss = engine(torch.ones(4)).sum()
assert torch.isfinite(loss)
engine.backward(loss)
norm = step(engine, stage)
unchanged = all(torch.equal(old, new) for old, new in zip(before, masters.flats, strict=True))
print(f"norm {norm} unchanged {unchanged}", flush=True)
dist.destroy_process_group()
# gloo's threads let go of Python objects late; one that does so in a finalising interpreter aborts the process
os._exit(0)
