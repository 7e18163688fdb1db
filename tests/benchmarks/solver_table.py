"""`python -m tests.benchmarks.solver_table RUN`: every solver at 5 to 1000 evaluations, by `frechet_classifier`.

RUN is the folder of a finished run with classes, such as `configs/digits.yaml`'s. A cell is the mean and the standard
deviation over seeds, each with its own samples, against the training images. One that is done is kept in `--out`, so
the command may be stopped and started again. Results go to docs/benchmarks.md by hand, with machine and date.
"""

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import get_args

import torch

from diffusion.config import EdmStochastic, Heun, PredictorCorrector, Rk45, SolverConfig, evaluations
from diffusion.frechet import Moments, frechet_distance
from diffusion.images import to_pixels
from diffusion.package import load_package
from diffusion.solvers import ImageNoise, make_solver
from trainer.config.run_config import RunConfig
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.evaluate.extractors.classifier import ClassifierExtractor, train_extractor

NFE = (5, 10, 20, 50, 100, 1000)
AT_1000 = ("ancestral", "ddim")  # the ODE solvers have converged by then
BATCH = 125
Cell = tuple[str, int, int]


def config_of(kind: str, nfe: int) -> SolverConfig:
    """The solver whose evaluations per image are `nfe`, or the next below; rk45 has a tolerance of 1 / nfe^2."""
    model = next(m for m in get_args(get_args(SolverConfig)[0]) if m.model_fields["kind"].default == kind)
    if model is Rk45:
        return Rk45(rtol=nfe**-2.0, atol=nfe**-2.0)
    steps = (nfe + 1) // 2 if model in (Heun, EdmStochastic, PredictorCorrector) else nfe
    return model(num_steps=steps)


def dataset_of(run: Path) -> Dataset:
    """The prepared data of a run."""
    config = RunConfig.model_validate(json.loads((run / "run.json").read_text())["config"], strict=False)
    return prepare(config.data, Path(config.run.storage or ""))


@lru_cache(maxsize=1)
def reference(run: Path) -> tuple[ClassifierExtractor, Moments]:
    """The extractor and the training images' moments, once a process."""
    torch.set_num_threads(1)
    dataset = dataset_of(run)
    extractor = train_extractor(dataset.images("train")[:], dataset.labels("train"), dataset.info.classes, 0)
    return extractor, Moments.of(extractor.features(dataset.images("train")[:]))


def measure(run: Path, cell: Cell, samples: int) -> tuple[Cell, dict[str, float]]:
    """The distance of one cell's samples, and the evaluations they took per image."""
    kind, nfe, seed = cell
    extractor, train = reference(run)
    denoiser, package = load_package(run / "package")
    features, asked = [], 0
    with torch.inference_mode():
        for first in range(0, samples, BATCH):
            block = range(first, min(first + BATCH, samples))
            solver = make_solver(config_of(kind, nfe), denoiser, ImageNoise(seed, block, package.image_shape))
            while (query := solver.want()) is not None:
                asked += len(query.x)
                solver.feed(denoiser.output(query.x, query.t, query.label))
            features.append(extractor.features(to_pixels(solver.x)))
    distance = frechet_distance(Moments.of(torch.cat(features)), train)
    return cell, {"frechet_classifier": distance, "evaluations": asked / samples}


def cells(seeds: int) -> list[Cell]:
    """All cells, the cheap ones first."""
    kinds = [str(model.model_fields["kind"].default) for model in get_args(get_args(SolverConfig)[0])]
    every = [(kind, nfe, seed) for nfe in NFE for kind in kinds for seed in range(seeds)]
    return [(kind, nfe, seed) for kind, nfe, seed in every if nfe < 1000 or kind in AT_1000]


def table(done: dict[str, dict[str, float]]) -> str:
    """Markdown: a row per solver, a column per number of evaluations."""
    kinds = list(dict.fromkeys(key.split()[0] for key in done))
    lines = [f"| solver | {' | '.join(map(str, NFE))} |", f"|---|{'---|' * len(NFE)}"]
    for kind in kinds:
        row = []
        for nfe in NFE:
            found = [value for key, value in done.items() if key.split()[:2] == [kind, str(nfe)]]
            distances = [value["frechet_classifier"] for value in found]
            text = f"{statistics.mean(distances):.2f} ± {statistics.stdev(distances):.2f}" if len(found) > 1 else ""
            asked = statistics.mean(value["evaluations"] for value in found) if found else nfe
            row.append(f"{text} ({asked:.0f})" if text and evaluations(config_of(kind, nfe)) != nfe else text)
        lines.append(f"| `{kind}` | {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, keep it, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.solver_table", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/solver-table.json"))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    done: dict[str, dict[str, float]] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in cells(options.seeds) if " ".join(map(str, cell)) not in done]
    with ProcessPoolExecutor(options.processes) as pool:
        waiting = [pool.submit(measure, options.run, cell, options.samples) for cell in missing]
        for number, future in enumerate(as_completed(waiting), 1):
            cell, values = future.result()
            done[" ".join(map(str, cell))] = values
            options.out.write_text(json.dumps(done, indent=1, sort_keys=True))
            print(f"{number}/{len(missing)} {cell} {values['frechet_classifier']:.3f}", flush=True)
    print(table(done))


if __name__ == "__main__":
    main()
