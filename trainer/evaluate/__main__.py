"""`python -m trainer.evaluate`: evaluate an existing model, apart from its training.

    MODEL -> package, data, settings (target.py) -> blocks as Ray tasks (evaluation.py) -> table, files, pictures

torch and Ray are imported only when needed, so that --help is fast.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from diffusion.command import printable
from diffusion.config.errors import describe, spelled_as_option
from diffusion.json_text import json_text
from trainer.config.evaluation import EvaluationConfig, ExtractorName, Metric
from trainer.config.load import default_storage, tracking_uri
from trainer.config.run_config import RunConfig
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError, RunFailedError
from trainer.evaluate.extractors.dimensions import FEATURES, left_out
from trainer.evaluate.target import EvaluationTarget, MlflowRef, find_target, with_options, without_paths
from trainer.files import check_output
from trainer.run.summary import Evaluated
from trainer.runtime.command import resumable
from trainer.runtime.stop import Stop, exit_process

if TYPE_CHECKING:
    from trainer.evaluate.evaluation import Progress

EXAMPLES = f"""\
examples:
  python -m trainer.evaluate ~/dualview/digits/digits-13b6668d --metrics all --nfe-curve 5,10,20,50
  python -m trainer.evaluate digits@champion --metrics frechet,kid --samples 5000 --seeds 3 --out scores
  python -m trainer.evaluate digits@champion --solver ddim --nfe 50 --samples 5000 --out ddim
  python -m trainer.evaluate digits@champion --extractors efficientnet_lite0 --samples 2000 --out lite0
  python -m trainer.evaluate path/to/package --data digits --out scores

MODEL is the folder of a run, the folder of a package, or NAME@alias in the registry. Settings that are not given are
those of the run's own evaluation. evaluation.json, report.html and pictures are written to FOLDER.

metrics: {", ".join(get_args(Metric))}; or all.
vlb_bpd and continuous_vlb_bpd are upper bounds of -log2 P of the 8-bit images, under the chain and under the continuous
process; nll_bpd is the negative log density of dequantised images under the probability-flow ODE. They are three
different quantities: compare models by one of them, never one with another. denoising is the denoising error against
log-SNR, from which all three follow.

extractors: {", ".join(get_args(ExtractorName))}. frechet and kid are computed with
each, precision_recall with the first. A Frechet distance needs more samples than features ({FEATURES} of classifier,
1280 of efficientnet_lite0), and four times as many to be extrapolated to infinitely many. Only that of inception is
called fid; its weights are not included: --inception-file weights.pt.

Run the same command again to resume from the finished blocks; with more samples or seeds, only the new ones are drawn.

exit codes: 0 done; 2 bad input; 75 stopped by SIGTERM or Ctrl-C, run the same command again; 1 anything else
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m trainer.evaluate",
        description="Evaluate a model with Ray tasks: likelihoods of held-out images, distances of samples to data.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("model", metavar="MODEL", help="folder of a run or of a package, or NAME@alias")
    add("--metrics", metavar="A,B", help="metrics, or all; default: those of the run")
    add("--samples", type=int, metavar="N", help="number of samples for each seed")
    add("--seeds", type=int, metavar="K", help="number of sample sets, for means and standard deviations over seeds")
    add("--seed", type=int, help="seed of the first sample set and of all other random draws")
    add("--solver", metavar="NAME", help="solver, with its default settings except for --nfe")
    add("--nfe", type=int, metavar="N", help="at most N network evaluations per sample")
    add("--nfe-curve", metavar="5,10,…", help="also score samples at these numbers of network evaluations")
    add("--extractors", metavar="A,B", help="feature extractors of the sample metrics")
    add(
        "--reference",
        metavar="FILE.npz",
        help="published statistics (mu and sigma, as the FID literature has them) that the Frechet distance by the "
        "extractor with as many features is to",
    )
    add("--inception-file", metavar="FILE", help="TorchScript file of an Inception-v3, for the extractor inception")
    add("--data", metavar="SOURCE", help="data source; default: the one that the run was trained on")
    add(
        "--trust-run",
        action="store_true",
        help="take the settings of a run that another user can have written: files that it names, its MLflow server",
    )
    add("--out", type=Path, metavar="FOLDER", help="output folder; default: RUN/evaluation")
    add("--tasks", type=int, metavar="N", help="number of concurrent Ray tasks; default: one for each GPU or CPU")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device of the networks; auto uses GPUs if there are any",
    )
    add(
        "--tracking-uri",
        metavar="URI",
        help="MLflow URI of the registry; default: MLFLOW_TRACKING_URI, or the local database",
    )
    add("--json", action="store_true", help="print JSON")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return resumable(lambda stop: _run(parser().parse_args(arguments), stop))


def _run(options: argparse.Namespace, stop: Stop) -> int:
    from diffusion.terminal import PlainConsole
    from trainer.runtime.progress_bar import ProgressBar

    target = stop.call(lambda: _target(options))
    if target.unsaid:
        print(f"warning: {target.unsaid}", file=sys.stderr)
    with ProgressBar(PlainConsole(stderr=True), "starting") as bar:
        model, evaluated = stop.call(lambda: evaluate(target, options.tasks, options.device, bar.blocks, stop))
    if options.json:
        print(json_text({**model, **evaluated.to_json()}, indent=2))
    else:
        print(table(target.evaluation, model, evaluated))
        print(f"  report: {target.out / 'report.html'}")
    return 0


def _target(options: argparse.Namespace) -> EvaluationTarget:
    """What the command line names.

    Raises:
        InputError: it names no model, or a setting that is not valid.
    """
    try:
        target = find_target(options.model, options.tracking_uri, _from_registry, options.trust_run)
        return with_options(target, options)
    except ValidationError as error:
        raise InputError(describe(error, EvaluationConfig, spelled_as_option)) from None


def evaluate(
    target: EvaluationTarget, tasks: int | None, device: str, progress: "Progress", stop: Stop
) -> tuple[dict[str, Any], Evaluated]:
    """Evaluate the target: the fields that identify it, and its scores, which are also written to evaluation.json.

    Raises:
        InputError: the data do not fit the model, or no cluster responds at RAY_ADDRESS.
    """
    from diffusion.package import verify_package
    from trainer.data.prepare import prepare
    from trainer.runtime.ray_cluster import check_ray_address, connect_ray

    check_ray_address()
    check_output(target.out, "--out", own=("blocks", "evaluation.json"))
    data = prepare(target.data, target.storage)
    target.check(data.info)
    if note := left_out(target.evaluation, data.info.classes):
        print(f"note: {note}", file=sys.stderr)
    if difference := target.data_difference(data.info):
        print(f"note: {printable(difference)}", file=sys.stderr)
    connect_ray()
    import ray

    from trainer.runtime.cluster_watch import ClusterWatch

    watch = ClusterWatch(stop.fail)
    watch.start()
    from trainer.evaluate.evaluation import Evaluation, evaluate_package

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
        progress=progress,
        stopped=lambda: stop.reason is not None,
    )
    model = {
        "model": target.name,
        "package_sha256": verify_package(target.package),
        "dataset_fingerprint": data.info.fingerprint,
        "evaluation": target.evaluation.model_dump(mode="json"),
    }
    evaluated = evaluate_package(
        evaluation,
        target.out / "evaluation.json",
        lambda evaluated: {**model, **evaluated.to_json()},
        keep_blocks=True,
    )
    watch.close()
    if target.mlflow_run:
        log_to_mlflow(target, target.mlflow_run, data.info, model, evaluated)
    return model, evaluated


def log_to_mlflow(
    target: EvaluationTarget, mlflow_run: MlflowRef, info: DatasetInfo, model: dict[str, Any], evaluated: Evaluated
) -> None:
    """Log the evaluation to MLflow; an outage is only a warning, since the results are in their folder.

    Raises:
        RunFailedError: MLflow refuses it.
    """
    from trainer.tracking.standalone import log_standalone

    config = target.evaluation
    what = f"{config.seeds} x {config.samples}, {config.solver.kind}" if config.samples_images else "likelihoods"
    try:
        logged = log_standalone(
            mlflow_run.tracking_uri,
            mlflow_run.run_id,
            f"evaluation: {target.name}, {what}",
            info,
            model,
            evaluated,
            target.out,
        )
        if logged is None:
            print(f"note: not recorded: the MLflow run {mlflow_run.run_id} was deleted", file=sys.stderr)
    except RunFailedError as error:
        raise RunFailedError(
            f"MLflow at {mlflow_run.tracking_uri} does not record the evaluation: {error}; the results are in "
            f"{target.out}"
        ) from error
    except ConnectionError as error:
        warning = f"warning: MLflow at {mlflow_run.tracking_uri} did not answer: {error}"
        print(printable(warning), file=sys.stderr)
        print("  the results are kept locally; run the same command again to log them", file=sys.stderr)


def table(config: EvaluationConfig, model: dict[str, Any], evaluated: Evaluated) -> str:
    """Scores as text, one metric a line, with its standard error."""
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
    try:
        config = RunConfig.model_validate_json(config_json)
    except ValidationError as error:
        raise InputError(f"MODEL = {name}@{alias}: its configuration: {describe(error, RunConfig)}") from None
    data, evaluation, notes = without_paths(config)
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    mlflow_run = MlflowRef(uri, run_id)
    return EvaluationTarget(f"{name}@{alias}", package, data, evaluation, Path(), storage, mlflow_run, of_others=True)


if __name__ == "__main__":
    exit_process(main())
