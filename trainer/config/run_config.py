"""RunConfig: everything one training run depends on, and its identity.

The canonical JSON of a resolved RunConfig travels unchanged from the command line to the workers, MLflow, checkpoints
and the model package. This module imports no torch.
"""

import hashlib
import json

from pydantic import Field, model_validator

from diffusion.config import (
    ClassifierFree,
    Config,
    DdpmProcess,
    NetworkConfig,
    ObjectiveConfig,
    ProcessConfig,
    UNetConfig,
    check_guidance,
    check_objective,
    check_solver,
)
from trainer.config.data import DataConfig
from trainer.config.evaluation import EvaluationConfig, check_curve, check_metrics
from trainer.config.fields import Seed
from trainer.config.parallel import ParallelConfig
from trainer.config.run import RunSettings
from trainer.config.training import EmaConfig, OptimConfig, TrainingConfig

NOT_METHOD = ("parallel", "run")
NOT_METHOD_OF_TRAINING = ("steps", "init_from")  # what init_from names is, by its digest


class RunConfig(Config):
    """One training run."""

    data: DataConfig = DataConfig()
    process: ProcessConfig = DdpmProcess()
    objective: ObjectiveConfig = ObjectiveConfig()
    network: NetworkConfig = Field(default=UNetConfig(), discriminator="kind")
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    parallel: ParallelConfig = ParallelConfig()
    run: RunSettings = RunSettings()
    seed: Seed = 0

    @model_validator(mode="after")
    def _parts_fit(self) -> "RunConfig":
        check_objective(self.process, self.objective)
        check_solver(self.process, self.evaluation.solver, "evaluation.solver")
        check_guidance(self.evaluation.guidance, self.network.classes, "evaluation.guidance")
        if isinstance(self.evaluation.guidance, ClassifierFree) and not self.objective.label_dropout:
            raise ValueError(
                "evaluation.guidance.kind = classifier_free: needs a network that is also trained without labels; "
                "allowed: with objective.label_dropout above 0, such as 0.1"
            )
        check_metrics(self.process, self.evaluation.metrics)
        check_curve(self.process, self.evaluation)
        if self.parallel.deepspeed.activation_checkpointing and self.network.kind == "mlp":
            raise ValueError(
                "parallel.deepspeed.activation_checkpointing = True; allowed: with network.kind unet or dit"
            )
        if self.parallel.channels_last and self.network.kind != "unet":
            raise ValueError("parallel.channels_last = True; allowed: with network.kind unet, which is convolutions")
        if self.parallel.max_workers > self.training.global_batch_size:
            raise ValueError(
                f"parallel.workers = {self.parallel.max_workers}; allowed: at most training.global_batch_size = "
                f"{self.training.global_batch_size}"
            )
        return self

    def canonical_json(self) -> str:
        """The one spelling of this configuration: sorted keys, no spaces."""
        return canonical(self.model_dump(mode="json"))

    @property
    def config_sha256(self) -> str:
        """SHA-256 of everything."""
        return _sha256(self.canonical_json())

    @property
    def method_sha256(self) -> str:
        """SHA-256 of what decides the result: all but `parallel`, `run`, `training.steps` and `training.init_from`.

        A field that was added later stays out while it has its default (`diffusion.config.Later`).
        """
        values = {name: value for name, value in self.identity().items() if name not in NOT_METHOD}
        for name in NOT_METHOD_OF_TRAINING:
            values["training"].pop(name, None)
        return _sha256(canonical(values))


def canonical(values: object) -> str:
    """Canonical JSON: sorted keys, no white space."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
