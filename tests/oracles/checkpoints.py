"""Checkpoints of a few tensors, as several ranks write them or by hand, and the damage that is done to them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from diffusion.config import MLPConfig
from diffusion.package import file_sha256
from tests.oracles.world import FlatMasters, ThreadWorld
from trainer.checkpoint.fragments import fragments_of
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.writer import manifest_fields, save
from trainer.config.run_config import RunConfig
from trainer.run.attempt import Fence, begin_attempt
from trainer.run.manifest import MANIFEST, step_folder, with_digest
from trainer.worker.engine import MOMENTS

CONFIG = RunConfig(network=MLPConfig(width=8, depth=1))
PARAMETERS = {
    "weight": torch.arange(35, dtype=torch.float32).reshape(5, 7) / 3,
    "bias": torch.linspace(-1, 1, 5),
    "scalar": torch.tensor([2.5]),
    "block.w": torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)),
}
KINDS = {"param": 1.0, "ema_0": 0.25, "ema_1": 0.5, "exp_avg": 10.0, "exp_avg_sq": -3.0}


def write(folder, step, world, parameters=PARAMETERS, attempt="mine", skipped=0, loss=None, journal=None):
    """A checkpoint as `world` ranks write it, through the real `save`; attempt "mine" is in charge."""
    ranks, charge = ThreadWorld(world), folder / "attempt"
    folder.mkdir(parents=True, exist_ok=True)
    begin_attempt(charge, "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.checkpoint.writer.dist", ranks)

        def rank_main(rank):
            masters = FlatMasters(parameters, rank, world)
            aligned = {kind: [flat * KINDS[kind] for flat in masters.flats] for kind in ("param", "ema_0", "ema_1")}
            aligned |= {kind: masters.moments(kind) for kind in MOMENTS}
            manifest = manifest_fields(CONFIG, masters.shapes(), (1, 4, 4), step, skipped, loss)
            fence, own = Fence(charge, attempt), journal if rank == 0 else None
            return save(folder, fragments_of(masters.fragments, aligned), manifest, fence, journal=own)

        return ranks.run(rank_main)[0]


def handwritten(folder, files: dict[str, dict[str, torch.Tensor]], shapes, step=1):
    """A checkpoint from given fragments, with a manifest that agrees with them."""
    folder = folder if folder.name.startswith("step-") else step_folder(folder, step)
    folder.mkdir(parents=True)
    for name, fragments in files.items():
        save_file(fragments, folder / name)
    digests = {name: {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in files}
    manifest = with_digest(
        {"format_version": 3, "step": step, "skipped": 0, "shapes": shapes, "image_shape": [1, 4, 4], "files": digests}
    )
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Checkpoint(folder)


def flip(path, position=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 0x10
    path.write_bytes(bytes(data))
