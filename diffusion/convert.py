"""`python -m diffusion.convert`: convert model packages to Hugging Face diffusers' folders, and back."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion.command import run_command

LABELS = "model.class_embedding.weight"
EXAMPLES = """\
examples:
  python -m diffusion.convert to-diffusers package/ ddpm-digits/
  python -m diffusion.convert from-diffusers ddpm-digits/ package/
  python -m diffusion.convert from-diffusers ddpm-digits/ package/ --null-label 10   # a network with 10 classes

exit codes: 0 done; 2 bad input
"""


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(
        prog="python -m diffusion.convert",
        description="Exchange models with Hugging Face diffusers; safetensors only, and nothing is fetched.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", required=True)
    command = commands.add_parser("to-diffusers", help="write a package of a UNet as a DDPMPipeline folder")
    command.add_argument("source", type=Path, metavar="PACKAGE")
    command.add_argument("destination", type=Path, metavar="FOLDER")
    command = commands.add_parser("from-diffusers", help="write a folder of a UNet2DModel as a package")
    command.add_argument("source", type=Path, metavar="FOLDER")
    command.add_argument("destination", type=Path, metavar="PACKAGE")
    command.add_argument(
        "--null-label", type=int, metavar="N", help="the label that stands for none; without it, samples need a label"
    )
    command.add_argument(
        "--variant", metavar="NAME", help="weights of this variant, such as fp16; default: those without, or the only"
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; None reads sys.argv.

    Returns:
        The exit code: 0 done, 2 bad input.
    """
    options = parser().parse_args(arguments)
    return run_command(lambda: _convert(options), (OSError, ValueError))


def _convert(options: argparse.Namespace) -> int:
    if options.destination.exists() and (not options.destination.is_dir() or any(options.destination.iterdir())):
        raise ValueError(f"{options.destination}: exists; allowed: a new or an empty folder")
    if options.command == "to-diffusers":
        to_diffusers(options.source, options.destination)
    else:
        print(from_diffusers(options.source, options.destination, options.null_label, options.variant))
    return 0


def to_diffusers(package: Path, folder: Path) -> None:
    """Write a package as a DDPMPipeline folder.

    Args:
        package: the package's folder.
        folder: where to write.

    Raises:
        ValueError: the package does not verify, or diffusers does not have its process, prediction or network.
    """
    from diffusion.interop.diffusers_folder import save_diffusers
    from diffusion.package import load_package

    save_diffusers(load_package(package)[0], folder)


def from_diffusers(folder: Path, package: Path, null_label: int | None = None, variant: str | None = None) -> str:
    """Write a diffusers folder as a package; its solver clips x_0 if the folder's scheduler does.

    A network whose labels are all classes gets one more, for none; it is not trained, and the package says so.

    Args:
        folder: a DDPMPipeline's or a UNet2DModel's.
        package: where to write.
        null_label: the label that means "no label"; it must be the last one. None if there is none.
        variant: of the weights; None for those without one, or for the only one.

    Returns:
        What was read, in one line.

    Raises:
        ValueError: as `load_diffusers`, or an architecture that `network.kind = unet` cannot express.
    """
    import torch

    from diffusion.config import Dpmpp2M
    from diffusion.interop.diffusers_folder import (
        load_diffusers,
        read_process,
        scheduler_fields,
        unet_config,
        unet_folder,
    )
    from diffusion.interop.diffusers_scheduler import clips_x0
    from diffusion.network import UNet
    from diffusion.package import PackageConfig, save_package

    denoiser = load_diffusers(folder, null_label, variant)
    assert isinstance(denoiser.network, UNet), "what load_diffusers makes"
    network, shape = unet_config(denoiser.network.model, null_label is not None)
    if null_label not in (None, network.classes):
        raise ValueError(
            f"--null-label = {null_label}; allowed: {network.classes}, the last of unet.num_class_embeds, "
            "which stands for none in a package, or none"
        )
    process, prediction = read_process(folder)
    clips = clips_x0(scheduler_fields(folder))
    solver = Dpmpp2M(num_steps=min(30, process.num_train_timesteps), clip_x0=clips)
    config = PackageConfig(
        process=process,
        prediction=prediction,
        network=network,
        image_shape=shape,
        solver=solver,
        null_label_trained=null_label is not None if network.classes else None,
    )
    weights = denoiser.network.state_dict()
    if network.classes and null_label is None:
        labels = weights[LABELS]
        weights[LABELS] = torch.cat([labels, labels.new_zeros(1, labels.shape[1])])
    save_package(package, config, weights)
    return _what_was_read(unet_folder(folder), network.classes, null_label)


def _what_was_read(unet: Path, classes: int, null_label: int | None) -> str:
    text = f"read {unet}"
    averaged = unet.with_name("unet_ema")
    if unet.name == "unet" and averaged.is_dir():
        text += f" ({averaged} has averaged weights)"
    if classes and null_label is None:
        text += f"; its {classes} labels are all classes, so samples need one (or --null-label {classes - 1})"
    return text


if __name__ == "__main__":
    sys.exit(main())
