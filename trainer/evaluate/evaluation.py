"""Evaluates a package with Ray tasks, and writes its results.

    blocks of likelihoods and of samples -> features of the samples and of the reference images -> scores

The files of both stages are reused; the scores are computed from these files alone.
"""

import hashlib
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import ray

from diffusion import durable
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

# settings that select blocks or their use, but do not change the content of a block
NOT_IN_BLOCK_KEY = {
    *("metrics", "seeds", "samples", "nfe_curve"),
    *("extractors", "inception_file", "inception_sha256", "classifier_seed", "reference"),
}
POLL_INTERVAL_S = 0.5
BACKGROUND_ENVIRONMENT = {"env_vars": {"DUALVIEW_BACKGROUND": "1"}}

Progress = Callable[[str, int, int], None]
Call = tuple[Any, ...]
"""A function of `tasks`, and its arguments after the TaskContext."""


class EvaluationStoppedError(RuntimeError):
    """The evaluation was stopped before it had finished."""


@cache
def as_task(function: Callable[..., Any], cpus: float, gpus: float, background: bool) -> Any:  # noqa: ANN401 - Ray's
    """A function as a Ray task; background tasks run in processes of their own, which have a low priority.

    A process cannot raise its priority again. Ray reuses processes only for tasks of one environment, so background
    tasks import once for each process, and no other task inherits the low priority.
    """
    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(function)
    return task.options(runtime_env=BACKGROUND_ENVIRONMENT) if background else task


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and with which resources.

    Attributes:
        package: folder of the model's package.
        network: kind of its network, whose modules the tasks import first.
        data: the held-out images are scored, and samples are compared with the training images.
        config: settings of the evaluation.
        results: folder for samples, pictures and, while they are needed, blocks.
        references: folder for classifiers and reference features, which evaluations share.
        tasks: maximal number of concurrent tasks.
        cpus: CPUs of each task; 0 to share those that other tasks reserve.
        device: device of the networks; with cuda, each task that evaluates networks has a GPU.
        background: whether tasks run only on otherwise idle CPUs.
        progress: called with a stage's name, the number of its finished files, and their total number.
        stopped: whether to cancel the running tasks and have `run` raise EvaluationStoppedError.
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
    stopped: Callable[[], bool] = lambda: False

    @cached_property
    def blocks(self) -> Path:
        """Folder of the blocks: one for each package, data set and settings that change the content of blocks."""
        guidance = self.config.guidance
        identity = {
            "package": verify_package(self.package),
            "guide": verify_package(Path(guidance.guide)) if isinstance(guidance, Autoguidance) else None,
            "data": self.data.info.fingerprint,
            "config": {name: value for name, value in self.config.identity().items() if name not in NOT_IN_BLOCK_KEY},
        }
        return self.results / "blocks" / hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]

    def run(self) -> Evaluated:
        """Compute the missing blocks, then the scores; writes pictures and the likelihoods of each image."""
        durable.make_folder(self.blocks)
        blocks = blocks_of(self.config, self.data.info.heldout)
        self._compute(blocks)
        if self.config.samples_images:
            self._features()
        return ray.get(self._task(tasks.views, self.results))

    def _compute(self, blocks: Sequence[Block]) -> None:
        wants_classifier = self.config.samples_images and "classifier" in self._names
        missing = [block for block in blocks if block.load(self.blocks) is None]
        if self.device == "cuda":  # Ray ends a process that had a GPU after its task, so each gets one share
            shares = [missing[index :: self.tasks] for index in range(min(self.tasks, len(missing)))]
        else:  # a process takes the next block at once, so all finish at about the same time
            shares = [[block] for block in missing]
        calls: list[Call] = [(tasks.classifier,)] if wants_classifier else []
        calls += [(tasks.blocks, share) for share in shares]
        self._run_calls("scoring", calls, [block.file(self.blocks) for block in missing])

    @property
    def _names(self) -> tuple[ExtractorName, ...]:
        return extractors_of(self.config, self.data.info.classes)

    def _features(self) -> None:
        calls, files = list[Call](), list[Path]()
        for extractor in extractors_to_load(self.config, self.data, self.references):
            sets_of_samples = (
                sample_sets(self.config) if extractor.name in self._names else sample_sets(self.config)[:1]
            )
            missing = [
                block
                for each in sets_of_samples
                for block in each.blocks(self.config.samples, feature_key(extractor))
                if block.load(self.blocks) is None
            ]
            sets = list(reference_sets(self.config).values())
            shares = max(1, min(self.tasks, len(missing)))
            for index in range(shares):
                part = missing[index::shares], sets[index::shares]
                calls.append((tasks.features, extractor.name, extractor.sha256, *part))
            files += [block.file(self.blocks) for block in missing]
        self._run_calls("comparing", calls, files)

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

    def _run_calls(self, stage: str, calls: Sequence[Call], files: Sequence[Path]) -> None:
        """Run the calls in order, `tasks` at a time; the first error is raised."""
        waiting, running = deque(calls), list[Any]()
        while waiting or running:
            if self.stopped():
                for task in running:
                    ray.cancel(task, force=True)
                raise EvaluationStoppedError(f"{stage}: stopped; finished blocks are kept")
            while waiting and len(running) < self.tasks:
                running.append(self._task(*waiting.popleft()))
            done, running = ray.wait(running, timeout=POLL_INTERVAL_S)
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
    """Evaluate a package and write all results. Used at the end of a run, beside training, and by `trainer.evaluate`.

    Args:
        evaluation: what is evaluated, and with which resources.
        file: path of the JSON file of results, written once all other results are on the disk.
        to_json: the content of that file: the scores, and what identifies the model.
        with_report: whether to write report.html and report.png to the results folder.
        keep_blocks: whether to keep the blocks, so that the same evaluation can be extended by samples or seeds.
    """
    from trainer.evaluate.report.html import write_report

    evaluated = evaluation.run()
    values = to_json(evaluated)
    if with_report:
        write_report(evaluation.results, {**values, "evaluation": evaluation.config.model_dump(mode="json")})
    durable.sync_all(evaluation.results)
    write_json(file, values)
    if not keep_blocks:
        shutil.rmtree(evaluation.blocks.parent)
    return evaluated
