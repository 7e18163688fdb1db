"""The evaluation of a package as Ray tasks, and the files it leaves in a results folder.

    blocks of likelihoods and of samples -> features of the samples and of what they are compared with -> scores

Both stages leave files that are not computed twice; the scores are put together from files alone.
"""

import hashlib
import shutil
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import ray

from diffusion.config import Autoguidance
from diffusion.package import verify_package
from trainer.config.evaluation import EvaluationConfig, ExtractorName
from trainer.config.run_config import canonical
from trainer.data.dataset import Dataset
from trainer.evaluate import tasks
from trainer.evaluate.blocks import Block, blocks_of, sample_sets
from trainer.evaluate.extractors.base import feature_key
from trainer.evaluate.extractors.dimensions import extractors_of
from trainer.evaluate.extractors.load import extractors_to_load
from trainer.evaluate.references.baselines import reference_sets
from trainer.files import write_json
from trainer.run.summary import Evaluated

# settings that say which blocks there are and what is made of them, and not what is in a block
NOT_IN_BLOCKS = {
    *("metrics", "seeds", "samples", "nfe_curve"),
    *("extractors", "inception_file", "inception_sha256", "classifier_seed"),
}
POLL_SECONDS = 0.5
BACKGROUND = {"env_vars": {"DUALVIEW_BACKGROUND": "1"}}

Progress = Callable[[str, int, int], None]
Call = tuple[Any, ...]
"""A function of `tasks`, and its arguments behind `TaskContext`."""


class EvaluationStoppedError(RuntimeError):
    """Nobody wants the scores any more."""


@cache
def as_task(function: Callable[..., Any], cpus: float, gpus: float, background: bool) -> Any:  # noqa: ANN401 - Ray's
    """A function as a Ray task; one that gives up its priority is in a process with others that do, and no others.

    A process does not get its priority back. Ray keeps processes of different environments apart and uses each again,
    so that those in the background import once, and not once a task.
    """
    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(function)
    return task.options(runtime_env=BACKGROUND) if background else task


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how the work is spread.

    Attributes:
        package: the model.
        network: the kind of its network, whose imports tasks begin with.
        data: whose held-out images are scored, and whose training images samples are compared with.
        config: what is measured.
        results: the folder for samples, pictures and, while they are needed, blocks.
        references: the folder for what other evaluations need too.
        tasks: at most so many at a time.
        cpus: for each; 0 to share those that others hold.
        device: on which networks are evaluated; with cuda, a task that does so has a GPU.
        background: whether they run only when nothing else would.
        progress: told a stage's name, how many of its files there are, and how many there will be.
        stop: once set, running tasks are cancelled and `run` raises EvaluationStoppedError.
    """

    package: Path
    network: str
    data: Dataset
    config: EvaluationConfig
    results: Path
    references: Path
    tasks: int
    cpus: float
    device: str = "cpu"
    background: bool = False
    progress: Progress | None = None
    stop: threading.Event | None = None

    @cached_property
    def blocks(self) -> Path:
        """Where blocks are kept: a folder for each package, data set and way to measure, so that they never mix."""
        guidance = self.config.guidance
        identity = {
            "package": verify_package(self.package),
            "guide": verify_package(Path(guidance.guide)) if isinstance(guidance, Autoguidance) else None,
            "data": self.data.info.fingerprint,
            "config": {name: value for name, value in self.config.identity().items() if name not in NOT_IN_BLOCKS},
        }
        return self.results / "blocks" / hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]

    def run(self) -> Evaluated:
        """Compute what is not kept yet, and put it together; writes pictures and the likelihoods of each image."""
        self.blocks.mkdir(parents=True, exist_ok=True)
        blocks = blocks_of(self.config, self.data.info.heldout)
        self._compute(blocks)
        if self.config.samples_images:
            self._features()
        return ray.get(self._task(tasks.views, self.results))

    def _compute(self, blocks: Sequence[Block]) -> None:
        wants_classifier = self.config.samples_images and "classifier" in self._names
        left = [block for block in blocks if block.load(self.blocks) is None]
        if self.device == "cuda":  # Ray ends a process that had a GPU after its task, so each gets one share
            shares = [left[index :: self.tasks] for index in range(min(self.tasks, len(left)))]
        else:  # a process goes on with the next block at once, and all end together
            shares = [[block] for block in left]
        calls: list[Call] = [(tasks.classifier,)] if wants_classifier else []
        calls += [(tasks.blocks, share) for share in shares]
        self._do("scoring", calls, [block.file(self.blocks) for block in left])

    @property
    def _names(self) -> tuple[ExtractorName, ...]:
        return extractors_of(self.config, self.data.info.classes)

    def _features(self) -> None:
        calls, files = list[Call](), list[Path]()
        for extractor in extractors_to_load(self.config, self.data, self.references):
            compared = sample_sets(self.config) if extractor.name in self._names else sample_sets(self.config)[:1]
            left = [
                block
                for each in compared
                for block in each.blocks(self.config.samples, feature_key(extractor))
                if block.load(self.blocks) is None
            ]
            sets = list(reference_sets(self.config).values())
            shares = max(1, min(self.tasks, len(left)))
            for index in range(shares):
                part = left[index::shares], sets[index::shares]
                calls.append((tasks.features, extractor.name, extractor.sha256, *part))
            files += [block.file(self.blocks) for block in left]
        self._do("comparing", calls, files)

    def _task(self, function: Any, *arguments: Any) -> Any:  # noqa: ANN401 - a Ray task of any function
        gpus = 1 if self.device == "cuda" and function is tasks.blocks else 0
        context = tasks.TaskContext(
            network=self.network,
            dataset=self.data.folder,
            config=self.config.model_dump_json(),
            package=self.package,
            blocks=self.blocks,
            references=self.references,
            threads=max(1, int(self.cpus)),
            background=self.background,
            device=self.device if function is tasks.blocks else "cpu",
        )
        return as_task(function, self.cpus, gpus, self.background).remote(context, *arguments)

    def _do(self, stage: str, calls: Sequence[Call], files: Sequence[Path]) -> None:
        """All of it, in turn, `tasks` at a time; the first that fails ends it."""
        waiting, running = deque(calls), list[Any]()
        while waiting or running:
            if self.stop is not None and self.stop.is_set():
                for task in running:
                    ray.cancel(task, force=True)
                raise EvaluationStoppedError(f"{stage}: stopped; what is finished is kept")
            while waiting and len(running) < self.tasks:
                running.append(self._task(*waiting.popleft()))
            done, running = ray.wait(running, timeout=POLL_SECONDS)
            ray.get(done)
            if self.progress:
                self.progress(stage, sum(file.is_file() for file in files), len(files))


def evaluate_package(
    evaluation: Evaluation,
    file: Path,
    to_json: Callable[[Evaluated], dict[str, Any]],
    *,
    with_report: bool = True,
    keep_blocks: bool = False,
) -> Evaluated:
    """Score a package from its blocks to its files: the one way, of a run's end, beside training, and apart from it.

    Args:
        evaluation: what is evaluated, and how the work is spread.
        file: gets the JSON of what was found, once everything else is there.
        to_json: the object that goes into it, with whatever identifies the model.
        with_report: whether to write report.html and report.png beside it.
        keep_blocks: whether the same evaluation may want to go on from them, with more samples or seeds.
    """
    from trainer.evaluate.report.html import write_report

    evaluated = evaluation.run()
    values = to_json(evaluated)
    write_json(file, values)
    if with_report:
        write_report(evaluation.results, {**values, "evaluation": evaluation.config.model_dump(mode="json")})
    if not keep_blocks:
        shutil.rmtree(evaluation.blocks.parent)
    return evaluated
