"""Command line: `python -m sampler serve` deploys models on Ray Serve, `python -m sampler generate` samples here.

Exit codes: 0 done; 2 bad input, in one line; 1 anything else.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, get_args

from pydantic import TypeAdapter

from diffusion.command import end, printable, run_command
from diffusion.config import ClassifierFree, SolverConfig, check_evaluations, evaluations
from sampler.models import UNSAID, Model, ModelError, load, resolve

SOLVERS = tuple(str(member.model_fields["kind"].default) for member in get_args(get_args(SolverConfig)[0]))

SIGNED_HELP = "sample only from packages that the holder of this key has signed (`python -m diffusion.sign`)"
TRACKING_HELP = "the MLflow registry (default: MLFLOW_TRACKING_URI, or the local database that training writes)"
SERVE_EXAMPLES = """\
examples:
  python -m sampler serve --model digits@champion
  python -m sampler serve --model digits@champion --model digits@candidate --port 8080 --detach
  ray job submit --working-dir . -- python -m sampler serve --model digits@champion

  curl -s localhost:8000/v1/models
  curl -s localhost:8000/v1/images -H 'content-type: application/json' -d '{"n": 16, "seed": 0}' -o grid.png

The service has no authentication (Ray's token does not cover it): keep it on 127.0.0.1, or put a
proxy that authenticates in front of it.
To stop a detached application: serve shutdown -y
"""
GENERATE_EXAMPLES = """\
examples:
  python -m sampler generate digits@champion -n 64 --seed 0 --out grid.png
  python -m sampler generate digits@champion -n 1000 --solver ancestral --steps 250 --out samples.npy
  python -m sampler generate path/to/package --out grid.png
  python -m sampler generate emoji@champion --label cat --guidance 2 --out grid.png

Image i of a seed does not depend on -n, and the service returns the same image.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message.removeprefix('argument ')}; see {self.prog} --help\n")


def integer_between(low: int, high: int) -> Callable[[str], int]:
    """An argument type: a whole number from low to high."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text}: allowed: a whole number from {low} to {high}")
        return int(text)

    return parse


def positive_float(text: str) -> float:
    """An argument type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: allowed: a number above 0")
    return value


def output_path(text: str) -> Path:
    """An argument type: a file to write, .png or .npy, in a folder that exists."""
    path = Path(text)
    if path.suffix not in (".png", ".npy"):
        raise argparse.ArgumentTypeError(f"{text}: allowed: a name that ends in .png or .npy")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: allowed: a file in a folder that exists")
    return path


def build_parser() -> argparse.ArgumentParser:
    """The parser of both commands."""
    parser = Parser(
        prog="python -m sampler", description="Sample from trained models, as an HTTP service or to a file."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    raw = argparse.RawDescriptionHelpFormatter
    add_serve_options(commands.add_parser("serve", help="serve models over HTTP on a Ray cluster", formatter_class=raw))
    add_generate_options(commands.add_parser("generate", help="sample to a file, without Ray", formatter_class=raw))
    return parser


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`."""
    parser.description = (
        "Serve models over HTTP on the Ray cluster of RAY_ADDRESS, else the one running here, else a new one.\n"
        "Prints the URL once the service answers; Ctrl-C removes the application."
    )
    parser.epilog = SERVE_EXAMPLES
    add = parser.add_argument
    models = "a registered model, or a package folder that every node can read; repeatable, the first is the default"
    add("--model", action="append", required=True, metavar="NAME@alias", dest="models", help=models)
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=integer_between(1, 65535), default=8000, help="port to listen on (default: %(default)s)")
    add("--tracking-uri", metavar="URI", help=TRACKING_HELP)
    add(
        "--num-cpus",
        type=positive_float,
        default=1.0,
        metavar="N",
        help="CPUs and torch threads of a replica (default: 1)",
    )
    add(
        "--num-gpus",
        type=positive_float,
        default=0.0,
        metavar="N",
        help="GPUs of a replica, or a share of one, such as 0.5 (default: none, networks are evaluated on CPUs)",
    )
    add(
        "--timeout",
        type=positive_float,
        default=300.0,
        metavar="SECONDS",
        help="time limit for starting (default: 300)",
    )
    add("--signed-by", type=public_key, metavar="KEY.pub", help=SIGNED_HELP)
    add("--detach", action="store_true", help="return once the service answers, and leave it running")
    parser.set_defaults(run=run_serve)


def add_generate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `generate`."""
    parser.description = "Sample images to a file, on this machine, without Ray."
    parser.epilog = GENERATE_EXAMPLES
    add = parser.add_argument
    add("model", metavar="MODEL", help="NAME@alias of the registry, or the path of a package folder")
    add(
        "-n",
        "--count",
        type=integer_between(1, 10**6),
        default=64,
        metavar="N",
        help="number of images (default: %(default)s)",
    )
    add("--seed", type=integer_between(0, 2**63 - 1), default=0, help="seed of the noise (default: %(default)s)")
    add("--solver", choices=SOLVERS, help="sampling method, with its default settings (default: the package's)")
    add("--steps", type=integer_between(1, 10**6), metavar="N", help="steps per image (default: the solver's)")
    add(
        "--label",
        metavar="CLASS",
        help="class of all images, for class-conditional models: its name or, where no class has that name, its number",
    )
    scale = "guidance scale: classifier-free towards --label, or away from --guide"
    add("--guidance", type=positive_float, metavar="SCALE", help=scale)
    add("--guide", metavar="MODEL", help="a weaker model of the same kind to guide away from (autoguidance)")
    where = "where the network is evaluated (default: auto, a GPU if there is one)"
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=where)
    add("--out", type=output_path, required=True, help="output file: .png (one grid) or .npy (uint8 [N, H, W, C])")
    add("--tracking-uri", metavar="URI", help=TRACKING_HELP)
    add("--signed-by", type=public_key, metavar="KEY.pub", help=SIGNED_HELP)
    parser.set_defaults(run=run_generate)


def public_key(text: str) -> bytes:
    """A public key, from its file."""
    from diffusion.signature import read_public_key

    try:
        return read_public_key(Path(text))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run_serve(arguments: argparse.Namespace) -> None:
    """Deploy, print the URL, and serve until Ctrl-C or SIGTERM; with --detach, return at once."""
    sources = [resolve(reference, arguments.tracking_uri) for reference in arguments.models]
    names = [source.reference for source in sources]
    if len(set(names)) < len(names):
        raise ModelError(f"model: {', '.join(names)}: allowed: each name once")
    from sampler.service import Address, connect, deploy, remove

    address = Address(arguments.host, arguments.port)
    connect(start_if_none=not arguments.detach)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        deploy(sources, address, arguments.num_cpus, arguments.timeout, arguments.num_gpus, arguments.signed_by)
        print(f"serving {', '.join(names)} at {address.url}", flush=True)
        if not arguments.detach:
            signal.pause()
    except KeyboardInterrupt:
        if arguments.detach:
            raise
        remove()


def run_generate(arguments: argparse.Namespace) -> None:
    """Sample to a file, with a progress bar on the terminal."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from diffusion.terminal import PlainConsole
    from sampler.encode import ENCODERS, check_format
    from sampler.generate import generate

    console = PlainConsole(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"loading {arguments.model}", total=None)
        model = load(resolve(arguments.model, arguments.tracking_uri), device(arguments), arguments.signed_by)
        format_ = arguments.out.suffix.removeprefix(".")
        check_format(format_, model.config.image_shape[0])
        config = solver_config(model.config.solver, arguments.solver, arguments.steps)
        model, guidance = apply_guidance(model, arguments)
        evaluations_per_image = evaluations(config)
        total = arguments.count * evaluations_per_image * (2 if guidance else 1) if evaluations_per_image else None
        progress.update(task, description=f"sampling {arguments.count} images", total=total)
        pixels = generate(
            model,
            config,
            arguments.seed,
            arguments.count,
            lambda rows: progress.advance(task, rows),
            arguments.label,
            guidance,
        )
    if guidance is not None and model.config.null_label_trained is None:
        print(f"warning: {arguments.model} {UNSAID}", file=sys.stderr)
    arguments.out.write_bytes(ENCODERS[format_](pixels))
    solver_text = f"{config.kind}, {evaluations_per_image} evaluations" if evaluations_per_image else config.kind
    number = model.config.class_index(arguments.label)
    drawn = "" if number is None else f", class {number}{_named(model, number)}"
    print(f"{arguments.out}: {arguments.count} images of {arguments.model}{drawn} ({solver_text})")


def _named(model: Model, number: int) -> str:
    return f" ({printable(model.config.class_names[number])})" if model.config.class_names else ""


def device(arguments: argparse.Namespace) -> str:
    """The device of --device; ValueError if it asks for a GPU that is not there."""
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; allowed: cpu, or auto")
    return "cuda" if arguments.device != "cpu" and torch.cuda.is_available() else "cpu"


def apply_guidance(model: Model, arguments: argparse.Namespace) -> tuple[Model, ClassifierFree | None]:
    """The model, autoguided if --guide names another, and the classifier-free guidance, or None."""
    if arguments.guide is not None:
        from diffusion.solvers import autoguided

        guide = load(resolve(arguments.guide, arguments.tracking_uri), device(arguments), arguments.signed_by)
        if guide.config.image_shape != model.config.image_shape:
            raise ValueError(
                f"--guide: {arguments.guide} makes images of {guide.config.image_shape}; allowed: a model of "
                f"{model.config.image_shape}, as {arguments.model} is"
            )
        scale = 1.5 if arguments.guidance is None else arguments.guidance
        return replace(model, denoiser=autoguided(model.denoiser, guide.denoiser, scale)), None
    return model, None if arguments.guidance is None else ClassifierFree(scale=arguments.guidance)


def solver_config(default: SolverConfig, kind: str | None, steps: int | None) -> SolverConfig:
    """The package's solver, or the named kind with its defaults; `steps` overrides the number of steps.

    Raises:
        ValueError: the solver does not take so many steps, or is the package's and evaluates the network too often.
    """
    values: dict[str, object] = default.model_dump() if kind is None else {"kind": kind}
    if steps is not None and values["kind"] == "rk45":
        raise ValueError("--steps: rk45 chooses its steps by itself; allowed: without --steps")
    if steps is not None:
        values["num_steps"] = steps
    config: SolverConfig = TypeAdapter[SolverConfig](SolverConfig).validate_python(values)
    if kind is None:
        try:
            check_evaluations(config)
        except ValueError as error:
            raise ValueError(f"{error}; or --solver of your own") from None
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _act(arguments), ValueError)


def _act(arguments: argparse.Namespace) -> int:
    """Run one command; a service, registry or model that does not do its part is one line."""
    try:
        arguments.run(arguments)
    except BrokenPipeError:
        raise
    except (RuntimeError, ArithmeticError, OSError) as error:
        return end(1, f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
