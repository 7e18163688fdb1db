"""`python -m tests.benchmarks.checkpoint_cost [FOLDER]`: what it costs that a checkpoint is on the disk.

One rank, the default U-Net with Adam's moments and two EMA tracks. `renamed` is how checkpoints were written before
2026-11-28: no fsync, and each file read again for its digest. Interleaved in one run; results go to docs/benchmarks.md
by hand, with machine and date. In training, a thread of the rank does this while the next steps go on.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch._C._distributed_c10d import HashStore

from diffusion.config import UNetConfig
from diffusion.network import build_network
from diffusion.package import file_sha256
from tests.benchmarks.timing import interleaved, quartiles
from trainer.checkpoint.writer import manifest_fields, save
from trainer.config.run_config import RunConfig
from trainer.run.attempt import Fence, begin_attempt

KINDS = ("param", "exp_avg", "exp_avg_sq", "ema_0", "ema_1")
REPEATS = 30


def main() -> None:
    """Measure and print."""
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    parameters = dict(build_network(UNetConfig(), (1, 8, 8)).named_parameters())
    fragments = {
        f"{kind}|{name}|0": value.detach().flatten().clone() for kind in KINDS for name, value in parameters.items()
    }
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    manifest = manifest_fields(RunConfig(), shapes, (1, 8, 8), 250)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory(dir=where) as folder:
        begin_attempt(Path(folder) / "attempt", "mine")
        fence = Fence(Path(folder) / "attempt", "mine")
        renamed = Path(folder) / "renamed"
        renamed.mkdir()

        def without_fsync() -> None:
            shard, temporary = renamed / "rank-00000.safetensors", renamed / "manifest.part"
            save_file(fragments, shard)
            temporary.write_text(json.dumps({**manifest, "files": {shard.name: file_sha256(shard)}}))
            os.replace(temporary, renamed / "manifest.json")

        seconds = interleaved(
            {
                "renamed": without_fsync,
                "on the disk": lambda: save(Path(folder) / "checkpoints", fragments, manifest, fence),
            },
            REPEATS,
        )
        size = (renamed / "rank-00000.safetensors").stat().st_size / 2**20
    print(f"{size:.1f} MiB, {torch.get_num_threads()} threads")
    for name, values in seconds.items():
        print(f"{name:12s} {quartiles([1000 * value for value in values], 1)} ms")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
