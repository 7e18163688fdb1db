"""`python -m tests.integration.gang CONFIG [PATH=VALUE …]`: the training part of a run alone, as its driver does it.

A process of its own, since Ray reads its token and its node address once, when it is imported.
"""

import sys
from pathlib import Path

from trainer.config.load import load_config
from trainer.data.prepare import prepare
from trainer.driver.ray_train import fit
from trainer.run.paths import RunPaths
from trainer.runtime.ray_cluster import connect_ray

config = load_config(Path(sys.argv[1]), sys.argv[2:])
paths = RunPaths.of(config)
paths.root.mkdir(parents=True, exist_ok=True)
connect_ray()
fit(config, paths, prepare(config.data, Path(config.run.storage or "")).folder, "cpu")
