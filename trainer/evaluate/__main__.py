"""`python -m trainer.evaluate`: score a model that there is, apart from its training.

    MODEL -> package, data, settings (target.py) -> blocks as Ray tasks (evaluation.py) -> table, files, pictures

Imports of torch and Ray wait until work begins, so that --help answers at once.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from diffusion.config.errors import describe, spelled_as_option
from trainer.config.evaluation import EvaluationConfig, ExtractorName, Metric
from trainer.config.load import default_storage, tracking_uri
from trainer.config.run_config import RunConfig
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError
from trainer.evaluate.extractors.dimensions import FEATURES
from trainer.evaluate.target import EvaluationTarget, MlflowRef, find_target, with_options
from trainer.run.summary import Evaluated

EXAMPLES = f"""\
examples:
  python -m trainer.evaluate ~/dualview/digits/digits-13b6668d --metrics all --nfe-curve 5,10,20,50
  python -m trainer.evaluate digits@champion --metrics frechet,kid --samples 5000 --seeds 3 --out scores
  python -m trainer.evaluate digits@champion --solver ddim --nfe 50 --samples 5000 --out ddim
  python -m trainer.evaluate digits@champion --extractors efficientnet_lite0 --samples 2000 --out lite0
  python -m trainer.evaluate path/to/package --data digits --out scores

MODEL is a run's folder, a package's folder, or NAME@alias of the registry. Settings that are not given are those that
the run was evaluated with. FOLDER gets evaluation.json, report.html and pictures.

metrics: {", ".join(get_args(Metric))}; or all.
vlb_bpd and continuous_vlb_bpd bound -log2 P of the 8-bit images, by the chain and by the continuous process; nll_bpd is
the density of the probability-flow ODE on dequantised images. They answer three questions: compare models by one of
them, never two of them with each other. denoising is the error against log-SNR that all three come from.

extractors: {", ".join(get_args(ExtractorName))}. frechet and kid are told by each, precision_recall by the
first. A frechet distance needs more samples than there are features, {FEATURES} of classifier and 1280 of
efficientnet_lite0, and four times as many to be extrapolated to infinitely many. Only inception's is called fid; its
file is yours: --inception-file weights.pt.

The same command again goes on from the blocks that are finished; more samples or seeds add to them.

exit codes: 0 done; 2 bad input; 1 anything else
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m trainer.evaluate",
        description="Score a model: likelihoods of held-out images, and the Frechet distance of samples, as Ray tasks.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("model", metavar="MODEL", help="RUN folder, package folder, or NAME@alias")
    add("--metrics", metavar="A,B", help="default: those of the run; all for every one")
    add("--samples", type=int, metavar="N", help="of each seed")
    add("--seeds", type=int, metavar="K", help="sets of samples, for a mean and a standard deviation")
    add("--seed", type=int, help="of the first set, and of all other draws")
    add("--solver", metavar="NAME", help="its defaults, but for --nfe")
    add("--nfe", type=int, metavar="N", help="network evaluations per image, or the next below")
    add("--nfe-curve", metavar="5,10,…", help="score samples at these numbers of evaluations too")
    add("--extractors", metavar="A,B", help="whose features samples are compared by")
    add("--inception-file", metavar="FILE", help="an Inception-v3 as TorchScript, for the extractor of that name")
    add("--data", metavar="SOURCE", help="default: what the run was trained on")
    add("--out", type=Path, metavar="FOLDER", help="default: RUN/evaluation")
    add("--tasks", type=int, metavar="N", help="at a time; default: one for each GPU or CPU")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="of networks; auto takes GPUs if there are any",
    )
    add("--tracking-uri", metavar="URI", help="of the registry; default: MLFLOW_TRACKING_URI, or the local database")
    add("--json", action="store_true", help="print the values as JSON")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    try:
        target = with_options(find_target(options.model, options.tracking_uri, _from_registry), options)
        model, evaluated = evaluate(target, options.tasks, options.device)
    except ValidationError as error:
        print(f"error: {describe(error, EvaluationConfig, spelled_as_option)}", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - whatever Ray raises, its last line says what went wrong
        from trainer.errors import last_line

        print(f"failed: {type(error).__name__}: {last_line(error)}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({**model, **evaluated.to_json()}, indent=2))
    else:
        print(table(target.evaluation, model, evaluated))
        print(f"  report: {target.out / 'report.html'}")
    return 0


def evaluate(target: EvaluationTarget, tasks: int | None, device: str = "auto") -> tuple[dict[str, Any], Evaluated]:
    """Score the target: what identifies it, and what was found, which are also in its folder's evaluation.json.

    Raises:
        InputError: the data do not fit the model, or nobody answers at RAY_ADDRESS.
    """
    from diffusion.package import verify_package
    from trainer.data.prepare import prepare
    from trainer.runtime.ray_cluster import check_ray_address, connect_ray

    check_ray_address()
    data = prepare(target.data, target.storage)
    target.check(data.info)
    connect_ray()
    import ray
    from rich.console import Console

    from trainer.evaluate.evaluation import Evaluation, evaluate_package
    from trainer.runtime.progress_bar import ProgressBar

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if device != "cpu" else 0
    if device == "cuda" and not gpus:
        raise InputError("--device cuda: the cluster has no GPU; allowed: cpu, or auto")
    evaluation = Evaluation(
        package=target.package,
        network=target.network,
        data=data,
        config=target.evaluation,
        results=target.out,
        references=target.storage / "references",
        tasks=tasks or max(1, gpus or int(resources.get("CPU", 1))),
        cpus=1.0,
        device="cuda" if gpus else "cpu",
    )
    model = {
        "model": target.name,
        "package_sha256": verify_package(target.package),
        "dataset_fingerprint": data.info.fingerprint,
        "evaluation": target.evaluation.model_dump(mode="json"),
    }
    with ProgressBar(Console(stderr=True, highlight=False), "starting") as bar:
        evaluated = evaluate_package(
            replace(evaluation, progress=bar.blocks),
            target.out / "evaluation.json",
            lambda found: {**model, **found.to_json()},
            keep_blocks=True,
        )
    if target.mlflow_run:
        log_to_mlflow(target, target.mlflow_run, data.info, model, evaluated)
    return model, evaluated


def log_to_mlflow(
    target: EvaluationTarget, mlflow_run: MlflowRef, info: DatasetInfo, model: dict[str, Any], evaluated: Evaluated
) -> None:
    """Put the evaluation into MLflow, or say why not: what was found is in its folder all the same."""
    from trainer.tracking.standalone import log_standalone

    config = target.evaluation
    what = f"{config.seeds} x {config.samples}, {config.solver.kind}" if config.samples_images else "likelihoods"
    try:
        log_standalone(
            mlflow_run.tracking_uri,
            mlflow_run.run_id,
            f"evaluation: {target.name}, {what}",
            info,
            model,
            evaluated,
            target.out,
        )
    except Exception as error:  # noqa: BLE001 - whatever goes wrong there, the evaluation itself is whole
        from trainer.errors import last_line

        print(f"warning: MLflow at {mlflow_run.tracking_uri}: {last_line(error)}", file=sys.stderr)
        print("  everything is kept here; the same command tries again", file=sys.stderr)


def table(config: EvaluationConfig, model: dict[str, Any], evaluated: Evaluated) -> str:
    """Scores for people: one metric a line, with its standard error."""
    lines = [f"{model['model']}  (package {model['package_sha256'][:8]}, data {model['dataset_fingerprint'][:8]})"]
    for name, score in evaluated.scores.items():
        spread = "" if score.se is None else f" +- {score.se:.4f}"
        lines.append(f"  {name:34} {score.value:10.4f}{spread}")
    for name, points in evaluated.frechet_at_nfe.items():
        curve = ", ".join(f"{point.value:.2f} at {point.nfe}" for point in points)
        lines.append(f"  {name} against network evaluations: {curve}")
    if config.samples_images:
        lines.append(f"  {config.seeds} x {config.samples} samples, {config.solver.kind}; +- is a standard error")
    lines += [f"  note: {note}" for note in evaluated.notes]
    return "\n".join(lines)


def _from_registry(name: str, alias: str, given: str | None) -> EvaluationTarget:
    from trainer.registry.models import fetch

    storage = default_storage()
    uri = tracking_uri(given, storage)
    package, config_json, run_id = fetch(name, alias, uri, storage / "fetched")
    config = RunConfig.model_validate_json(config_json)
    mlflow_run = MlflowRef(uri, run_id)
    return EvaluationTarget(f"{name}@{alias}", package, config.data, config.evaluation, Path(), storage, mlflow_run)


if __name__ == "__main__":
    sys.exit(main())
