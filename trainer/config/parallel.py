"""How the work is spread over processes: `parallel.*`, which changes nothing about the method."""

from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationInfo, field_validator, model_validator

from diffusion.config import Config, Count, Positive

MAX_WORKERS = 100_000


class DeepSpeedConfig(Config):
    """DeepSpeed's settings beside the ZeRO stage, under its own names; sizes are in elements, null is its default.

    `cpu` keeps the optimizer's state (stages 1 to 3) or the parameters too (stage 3) in the host's memory.
    `activation_checkpointing` computes the network's activations again in the backward pass.
    """

    offload_optimizer: Literal["none", "cpu"] = "none"
    offload_parameters: Literal["none", "cpu"] = "none"
    activation_checkpointing: bool = False
    overlap_comm: bool | None = None
    reduce_bucket_size: Annotated[int, Field(ge=1, le=10**10)] | None = None
    allgather_bucket_size: Annotated[int, Field(ge=2, le=10**10, multiple_of=2)] | None = None
    stage3_prefetch_bucket_size: Count | None = None
    stage3_param_persistence_threshold: Annotated[int, Field(ge=0)] | None = None

    @field_validator("offload_optimizer", "offload_parameters", mode="before")
    @classmethod
    def _not_on_disk(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - whatever was given
        if value == "nvme":
            why = {
                "offload_optimizer": "the EMA and checkpoints cannot reach master weights that DeepSpeed keeps on NVMe",
                "offload_parameters": "NVMe needs an operator of DeepSpeed's compiled on every node; it is untried",
            }
            raise ValueError(f"allowed: none or cpu; {why[str(info.field_name)]}")
        return value

    def check_stage(self, stage: int) -> None:
        """Refuse what a ZeRO stage has no use for.

        Raises:
            ValueError: naming the setting and the stages that it is for.
        """
        for name, stages in STAGES_OF.items():
            value = getattr(self, name)
            if value not in (None, "none") and stage not in stages:
                allowed = " or ".join(map(str, stages))
                raise ValueError(f"deepspeed.{name} = {value}; allowed: with zero_stage {allowed}, not {stage}")


STAGES_OF = {
    "offload_optimizer": (1, 2, 3),
    "offload_parameters": (3,),
    "overlap_comm": (1, 2, 3),
    "reduce_bucket_size": (1, 2, 3),
    "allgather_bucket_size": (1, 2),
    "stage3_prefetch_bucket_size": (3,),
    "stage3_param_persistence_threshold": (3,),
}


class ParallelConfig(Config):
    """How the work is spread and where it is kept; changes nothing about the method.

    `workers` is a number, or [min, max] for as many as the cluster has room for, also while training goes on.
    `channels_last` is the order in which convolutions on GPUs want images; `compile` is torch.compile.
    """

    workers: int | tuple[int, int] = 2
    zero_stage: Literal[0, 1, 2, 3] = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_worker: Positive = 1.0
    micro_batch_size: Count | None = None
    channels_last: bool = False
    compile: bool = False
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()

    @property
    def min_workers(self) -> int:
        """The smallest number of workers that training starts with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The largest number of workers that training uses."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: Any) -> Any:  # noqa: ANN401 - whatever was given
        bounds = tuple(cast("list[Any]", value)) if isinstance(value, list | tuple) else (value, value)
        if [type(bound) for bound in bounds] != [int, int] or not 1 <= bounds[0] <= bounds[1] <= MAX_WORKERS:
            raise ValueError(
                "allowed: a number of at least 1, or [min, max] for as many as there is room for, and at most "
                f"{MAX_WORKERS}"
            )
        return value if isinstance(value, int) else bounds

    @model_validator(mode="after")
    def _parts_fit(self) -> "ParallelConfig":
        self.deepspeed.check_stage(self.zero_stage)
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile = True: stage 3 takes the parameters away between layers; allowed: zero_stage 0 to 2"
            )
        return self
