"""Hugging Face diffusers' model folders read as denoisers, and denoisers written as folders that sample identically.

A folder is a DDPMPipeline's (`unet/` and `scheduler/`), or a UNet2DModel's with scheduler_config.json in it, or in a
folder `scheduler` in it, beside it or beside the folder that it is in, as training scripts leave their checkpoints
(`checkpoint-500/unet_ema` and `scheduler`). Networks here are given t - 1, which is diffusers' timestep, so a network's
outputs are bitwise the same; the chain is the same up to diffusers' float32. Only safetensors are read, never pickle,
and nothing is downloaded.
"""
# diffusers is partly typed:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import copy
import inspect
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffusion.bounded import read_bounded
from diffusion.config import DdpmProcess, UNetConfig
from diffusion.config.network import MAX_LAYERS, MAX_RESOLUTIONS
from diffusion.denoiser import Denoiser
from diffusion.interop.diffusers_scheduler import read_scheduler, unsupported, write_scheduler
from diffusion.network import UNet, build_unet
from diffusion.package import MAX_TEXT_BYTES
from diffusion.prediction import Prediction
from diffusion.process.sde import make_process

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
INDEX, SCHEDULER_CONFIG = "model_index.json", "scheduler_config.json"
SHARDS = f"{WEIGHTS}.index.json"
PIPELINES = ("DDPMPipeline", "DDIMPipeline")
EMA_FIELDS = {
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
    "device", "foreach",
}  # fmt: skip
"""What diffusers' EMAModel adds to the configuration of the network that it averages."""


def load_diffusers(folder: Path, null_label: int | None = None, variant: str | None = None) -> Denoiser:
    """The denoiser of a diffusers folder, in evaluation mode on the CPU, float32.

    Args:
        folder: a pipeline's, or a UNet2DModel's with the configuration of its scheduler.
        null_label: the label of a class-conditional network that means "no label", which diffusers' folders do not
            state; None if there is none, and then every row needs a label.
        variant: of the weights (`diffusion_pytorch_model.VARIANT.safetensors`); None for those without, or for the only
            ones that there are.

    Raises:
        ValueError: a file that is missing or not safetensors, or a field that has no counterpart here; the message
            names the field, its value and what is allowed.
    """
    process, prediction = read_process(folder)
    network = _load_unet(unet_folder(folder), variant)
    settings = network.model.config
    channels = settings["in_channels"] * (2 if process.reverse_variance == "learned" else 1)
    if settings["out_channels"] != channels:
        raise unsupported(
            "unet.out_channels",
            settings["out_channels"],
            f"{channels}, for scheduler.variance_type gives a reverse variance of {process.reverse_variance}",
        )
    labels = settings["num_class_embeds"] or 0
    if null_label is not None and not 0 <= null_label < labels:
        raise unsupported("null_label", null_label, f"below unet.num_class_embeds = {labels}")
    return Denoiser(
        network,
        make_process(process),
        prediction,
        null_label=null_label,
        needs_label=labels > 0 and null_label is None,
    )


def unet_folder(folder: Path) -> Path:
    """Where the network of a diffusers folder is: in `unet` or else in the folder itself."""
    return folder / "unet" if (folder / "unet").is_dir() else folder


def read_process(folder: Path) -> tuple[DdpmProcess, Prediction]:
    """The chain of a diffusers folder, and what its network predicts.

    Raises:
        ValueError: as `load_diffusers`.
    """
    return read_scheduler(scheduler_fields(folder))


def scheduler_fields(folder: Path) -> dict[str, Any]:
    """The fields of a folder's scheduler_config.json.

    Raises:
        ValueError: there is no such file, or the folder belongs to another kind of pipeline.
    """
    if (folder / INDEX).exists():
        pipeline = _read_json(folder / INDEX).get("_class_name")
        if pipeline not in PIPELINES:
            raise unsupported(f"{folder / INDEX}: _class_name", pipeline, ", ".join(PIPELINES))
    places = [folder / "scheduler", folder, folder.parent / "scheduler", folder.parent.parent / "scheduler"]
    for place in places:
        if (place / SCHEDULER_CONFIG).exists():
            return _read_json(place / SCHEDULER_CONFIG)
    raise ValueError(f"{folder}: no {SCHEDULER_CONFIG}; allowed: one in {', '.join(map(str, places))}")


def save_diffusers(denoiser: Denoiser, folder: Path) -> None:
    """Write a DDPMPipeline folder that samples as `ancestral` does here.

    That holds over all T steps, and over fewer with beta-tilde. A DDIMScheduler made from its configuration samples as
    `ddim` does, with timestep_spacing = trailing.

    A `score` network is written with the sign of its last convolution changed, which makes it an epsilon network
    exactly. diffusers has no field for the null label of a class-conditional network; it is the last of
    `num_class_embeds`.

    Args:
        denoiser: its network is a UNet, its process a chain.
        folder: where to write.

    Raises:
        ValueError: a network that is not a UNet, or a process or prediction that diffusers does not have.
    """
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    network = denoiser.network
    if not isinstance(network, UNet):
        raise unsupported("network.kind", type(network).__name__, "unet, since diffusers' DDPMPipeline has no other")
    arguments = write_scheduler(denoiser)
    model = network.model if denoiser.prediction != "score" else _negated(network.model)
    DDPMPipeline(unet=model, scheduler=DDPMScheduler(**arguments)).save_pretrained(folder)


def unet_config(model: "UNet2DModel", has_null_label: bool = True) -> tuple[UNetConfig, tuple[int, int, int]]:
    """The configuration that builds a UNet2DModel like this one, and its image shape (C, H, W).

    Args:
        model: the network.
        has_null_label: whether the last of its labels, if it has any, means "no label". Where it has no such label, the
            configuration's network has one label more.

    Raises:
        ValueError: an architecture that `network.kind = unet` cannot express, or a model without an image size.
    """
    theirs = dict(model.config)
    size, labels = theirs["sample_size"], theirs["num_class_embeds"]
    if size is None:
        raise unsupported("unet.sample_size", size, "the height and width of the images")
    height, width = (size, size) if isinstance(size, int) else size
    shape = (theirs["in_channels"], height, width)
    config = UNetConfig(
        channels=tuple(theirs["block_out_channels"]),
        attention=tuple(kind.startswith("Attn") for kind in theirs["down_block_types"]),
        layers_per_block=theirs["layers_per_block"],
        norm_groups=theirs["norm_num_groups"],
        dropout=theirs["dropout"],
        classes=0 if not labels else labels - 1 if has_null_label else labels,
        head_width=_head_width(theirs),
    )
    if labels and not has_null_label:
        theirs["num_class_embeds"] = labels + 1
    with torch.device("meta"):
        ours = dict(build_unet(config, shape, theirs["out_channels"]).model.config)
    for name in inspect.signature(type(model).__init__).parameters:
        if name in ours and name != "sample_size" and _plain(theirs[name]) != _plain(ours[name]):
            raise unsupported(f"unet.{name}", theirs[name], f"{ours[name]}, as network.kind = unet has it")
    return config, shape


def _head_width(theirs: dict[str, Any]) -> int | None:
    """Channels of an attention head; None where each attention has one head.

    Raises:
        ValueError: they do not divide the channels of each resolution with attention.
    """
    width, channels = theirs["attention_head_dim"], theirs["block_out_channels"]
    kinds = [*theirs["down_block_types"], "AttnMid"]
    attended = {size for size, kind in zip([*channels, channels[-1]], kinds, strict=True) if kind.startswith("Attn")}
    if width is not None and any(size % width for size in attended):
        raise unsupported("unet.attention_head_dim", width, f"a divisor of {', '.join(map(str, sorted(attended)))}")
    return width


def _plain(value: object) -> object:
    """A value as JSON represents it, which turns tuples into lists."""
    return json.loads(json.dumps(value))


def _variant(folder: Path, variant: str | None) -> str | None:
    """The variant of the weights that are read: the one that is asked for, none, or the only one that there is.

    Raises:
        ValueError: there are no safetensors, or only several variants, or not the one that is asked for.
    """
    stem, suffix = WEIGHTS.rsplit(".", 1)
    plain = (folder / WEIGHTS).is_file() or (folder / SHARDS).is_file()
    names = [path.name.removeprefix(f"{stem}.") for path in folder.glob(f"{stem}.*.{suffix}*")]
    names = [name.partition(".")[0].partition("-0")[0] for name in names if not name.startswith(suffix)]
    found = sorted(set(names))
    if variant is not None:
        if variant not in found:
            known = ", ".join(found) or "none"
            raise ValueError(f"{folder}: variant = {variant}; allowed: {known}")
        return variant
    if plain:
        return None
    if not found:
        raise ValueError(f"{folder}: no {WEIGHTS}; allowed: safetensors only, since other formats are pickles")
    if len(found) > 1:
        raise ValueError(f"{folder}: several variants of weights; allowed: a variant of {', '.join(found)}")
    return found[0]


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The files that diffusers reads the weights of a variant from: those of the index, where there is one.

    Raises:
        ValueError: the index names anything but safetensors beside it; diffusers would read others as pickles.
    """
    (stem, suffix), (index, json_suffix) = WEIGHTS.rsplit(".", 1), SHARDS.rsplit(".", 1)
    middle = f".{variant}" if variant else ""
    index = folder / f"{index}{middle}.{json_suffix}"
    if not index.is_file():
        return [folder / f"{stem}{middle}.{suffix}"]
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{index}: names no shards; allowed: weight_map, from names of weights to names of files")
    names = {str(name) for name in shards.values()}
    for name in sorted(names):
        if "/" in name or not name.endswith(f".{suffix}") or not (folder / name).is_file():
            raise ValueError(f"{index}: shard {name!r}; allowed: the names of .{suffix} files beside it")
    return [folder / name for name in names]


def _load_unet(folder: Path, variant: str | None = None) -> UNet:
    """The UNet2DModel of a folder; its weights must be exactly those of the network, in name and shape."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    settings = _read_json(folder / CONFIG)
    _check_unet(settings, UNet2DModel)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
    if (chosen := _variant(folder, variant)) is not None:
        options["variant"] = chosen
    _check_size(folder, settings, UNet2DModel, _weight_files(folder, chosen))
    try:
        with _quiet():
            loaded: Any = UNet2DModel.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: not a UNet2DModel's folder: {error}") from error
    model, report = loaded
    if wrong := {name: keys for name, keys in report.items() if keys}:
        raise ValueError(f"{folder / WEIGHTS}: weights do not fit the network of {CONFIG}: {wrong}")
    # tensors mapped from a file need not be aligned in memory, and some kernels round otherwise where they are not
    return UNet(copy.deepcopy(model)).eval()


def _check_size(folder: Path, settings: dict[str, Any], kind: "type[UNet2DModel]", files: list[Path]) -> None:
    """Refuse a network that has more weights than the files could hold, before any memory is taken for it."""
    try:
        with _quiet(), torch.device("meta"):
            network: Any = kind.from_config(settings)
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{folder}: not a UNet2DModel's folder: {error}") from error
    count = sum(each.numel() for each in (*network.parameters(), *network.buffers()))
    size = sum(file.stat().st_size for file in files)
    if size < 2 * count:  # in 16 bits
        raise ValueError(f"{folder / WEIGHTS}: weights do not fit the network of {CONFIG}: {size} bytes for {count}")


@contextmanager
def _quiet() -> Generator[None]:
    """Without diffusers' progress bar, and its warnings of fields that it ignores, which `_check_unet` has seen."""
    from diffusers.utils import logging

    before, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bar:
            logging.enable_progress_bar()


def _check_unet(fields: dict[str, Any], model_type: "type[UNet2DModel]") -> None:
    """Refuse a network that is not a function of (x, float time, int label), or has fields unknown to diffusers."""
    if fields.get("_class_name") != model_type.__name__:
        raise unsupported("unet._class_name", fields.get("_class_name"), model_type.__name__)
    known = inspect.signature(model_type.__init__).parameters
    for name, value in fields.items():
        if not name.startswith("_") and name not in known and name not in EMA_FIELDS:
            raise unsupported(f"unet.{name}", value, f"the fields of this diffusers' {model_type.__name__}")
    _check_counts(fields)
    if (kind := fields.get("time_embedding_type", "positional")) != "positional":
        raise unsupported("unet.time_embedding_type", kind, "positional")
    if (kind := fields.get("class_embed_type")) is not None:
        raise unsupported("unet.class_embed_type", kind, "null")


def _check_counts(fields: dict[str, Any]) -> None:
    """Refuse more layers than a UNet here has; that they take no memory does not keep them from taking a day."""
    layers = fields.get("layers_per_block", 1)
    if not isinstance(layers, int) or layers > MAX_LAYERS:
        raise unsupported("unet.layers_per_block", layers, f"a whole number up to {MAX_LAYERS}")
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        blocks = fields.get(name, [])
        if not isinstance(blocks, list) or len(blocks) > MAX_RESOLUTIONS:
            raise unsupported(f"unet.{name}", blocks, f"a list of up to {MAX_RESOLUTIONS}")


def _negated(model: "UNet2DModel") -> "UNet2DModel":
    """A copy whose prediction has the opposite sign; the output for a learned variance is unchanged."""
    if "SkipUpBlock2D" in model.config["up_block_types"]:
        raise unsupported("objective.prediction", "score", "another, since SkipUpBlock2D adds to the last convolution")
    model = copy.deepcopy(model)
    channels = model.config["in_channels"]
    with torch.no_grad():
        model.conv_out.weight[:channels].neg_()
        assert model.conv_out.bias is not None, "UNet2DModel's last convolution has one"
        model.conv_out.bias[:channels].neg_()
    return model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(read_bounded(path, MAX_TEXT_BYTES))
    except FileNotFoundError:
        raise ValueError(f"{path}: missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: holds no fields")
    return fields
