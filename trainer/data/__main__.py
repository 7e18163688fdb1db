"""`python -m trainer.data`: prepare images for training, and describe a prepared data set."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from diffusion.config.errors import describe, spelled_as_option
from trainer.config.data import DataConfig
from trainer.data.listing import printable
from trainer.data.manifest import MAX_REJECTED, SPLITS, DatasetInfo, listed
from trainer.errors import InputError
from trainer.runtime.command import resumable
from trainer.runtime.stop import Stop, exit_process

if TYPE_CHECKING:
    from trainer.data.store import Store

DESCRIPTION = """\
Prepare images for training with a Ray Data job, on the cluster at RAY_ADDRESS or on a local one.

SOURCE  a folder of images, in which each sub-folder is a class, or is train/, val/ or test/ with a folder for each
        class; or a Parquet file or a folder of them, in the Hugging Face image layout. Either may be s3://bucket/prefix.
        Or a .npy file of uint8 images [N, H, W] or [N, H, W, C], or `digits`.
DEST    a folder that every node can read, or s3://bucket/prefix. Set data.source to it to train on the data set.
"""
EPILOG = """\
examples:
  python -m trainer.data prepare photos/ prepared/photos --size 64
  python -m trainer.data prepare train.parquet prepared/train --label-column none
  python -m trainer.data prepare s3://bucket/raw s3://bucket/prepared
  python -m trainer.data show prepared/photos
  python -m trainer --config configs/digits.yaml --set data.source=prepared/photos

Run the same command again to resume an interrupted preparation. DEST/rejected.parquet lists what is not used with
path, row and reason: unusable images as rejected, hidden and other files as left out. The content of a file decides
whether it is an image. Labels of a folder are those of its metadata.csv, .jsonl or .parquet, or dataset.json, if it has
any; classes are numbered in the natural order of their names (2 before 10). S3 is configured as for the AWS tools:
AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION.

exit codes: 0 done; 2 bad input, such as a source that does not exist or has no usable image; 75 stopped by SIGTERM or
Ctrl-C, run the same command again; 1 anything else
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m trainer.data",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="{prepare,show}")
    prepare = commands.add_parser(
        "prepare", help="prepare a source as a data set", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    prepare.add_argument("source", metavar="SOURCE")
    prepare.add_argument("dest", metavar="DEST")
    prepare.add_argument(
        "--size", type=int, metavar="N", help="scale and crop every image to N x N; default: the size of most images"
    )
    prepare.add_argument(
        "--channels", default="auto", choices=["auto", "1", "3"], help="auto: 1 if every image is grey, else 3"
    )
    prepare.add_argument(
        "--max-rejected", type=float, default=MAX_REJECTED, metavar="FRACTION",
        help="fail if a larger fraction of the images is unusable; default: %(default)s",
    )  # fmt: skip
    prepare.add_argument(
        "--image-column", metavar="NAME", help="image column of a Parquet source; default: its only one"
    )
    prepare.add_argument(
        "--label-column",
        metavar="NAME",
        help="label column of a Parquet source or of metadata files, or none for no labels; default: detected",
    )
    defaults = DataConfig()
    prepare.add_argument(
        "--white-level", type=int, metavar="V",
        help="value of white in images of more than 8 bits, such as 4095 for 12 bits; default: 65535",
    )  # fmt: skip
    prepare.add_argument(
        "--split", default="auto", choices=["auto", "source", "seeded"],
        help="source: the source's own (train and validation or test, by the names of folders or Parquet files); "
        "seeded: at random; default: the source's own where it has one",
    )  # fmt: skip
    prepare.add_argument(
        "--heldout-fraction", type=float, default=defaults.heldout_fraction, metavar="FRACTION",
        help="of a seeded split: fraction of the images to hold out, stratified by class; default: %(default)s",
    )  # fmt: skip
    prepare.add_argument(
        "--split-seed",
        type=int,
        default=defaults.split_seed,
        metavar="N",
        help="seed of a seeded split; default: %(default)s",
    )
    show = commands.add_parser("show", help="describe a prepared data set")
    show.add_argument("source", metavar="DATASET", help="a prepared folder, or s3://bucket/prefix")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return resumable(lambda stop: _run(parser().parse_args(arguments), stop))


def _run(options: argparse.Namespace, stop: Stop) -> int:
    command: Callable[[argparse.Namespace], int] = {"prepare": _prepare, "show": _show}[options.command]
    return stop.call(lambda: command(options))


def _prepare(options: argparse.Namespace) -> int:
    if not 0 <= options.max_rejected <= 1:
        raise InputError(f"--max-rejected = {options.max_rejected}: allowed: 0 to 1")
    data = _settings(options)
    from trainer.data.sources import check_source, prepared_info

    check_source(data)
    if prepared_info(data.source) is not None:
        raise InputError(
            f"SOURCE = {data.source!r}: is already a prepared data set; allowed: the source that it was prepared from"
        )
    from trainer.data.prepare import prepare_into, scan_source
    from trainer.data.store import Store

    source, dest = Store(data.source), Store(options.dest)
    if data.source != "digits" and _is_inside(dest, source):
        raise InputError(f"DEST = {options.dest!r}: lies inside SOURCE; allowed: a folder outside it")
    info = prepare_into(data, dest, scan_source(data), options.max_rejected, lambda line: print(line, flush=True))
    print("\n".join(described(info, dest.url)))
    return 0


def _is_inside(dest: "Store", source: "Store") -> bool:
    """Whether the destination lies in the source, links followed."""
    if not (dest.local and source.local):
        return f"{dest.url}/".startswith(f"{source.url}/")
    inner, outer = Path(dest.root).resolve(), Path(source.root).resolve()
    return outer in (inner, *inner.parents)


def _settings(options: argparse.Namespace) -> DataConfig:
    names = ("source", "size", "image_column", "label_column", "heldout_fraction", "split_seed", "split", "white_level")
    values = {name: getattr(options, name) for name in names}
    channels = options.channels if options.channels == "auto" else int(options.channels)
    try:
        return DataConfig.model_validate(values | {"channels": channels})
    except ValidationError as error:
        raise InputError(describe(error, DataConfig, spelled_as_option)) from None


def _show(options: argparse.Namespace) -> int:
    from trainer.data.sources import is_there, prepared_info

    info = prepared_info(options.source) if is_there(options.source) else None
    if info is None:
        raise InputError(f"{options.source}: no prepared data set; allowed: a folder that `prepare` wrote")
    print("\n".join(described(info, options.source)))
    return 0


def described(info: DatasetInfo, where: str) -> list[str]:
    """A readable description of a data set: counts, statistics, and a table of classes, one line each."""
    channels, height, width = info.image_shape
    files = sum(len(shards) for shards in info.shards.values())
    size = sum(shard.bytes for shards in info.shards.values() for shard in shards) / 2**20
    lines = [
        f"{where}: {info.train} images to train on, {info.heldout} held out, {info.rejected} rejected, "
        f"{info.left_out} left out",
        f"  {width} x {height}, {channels} channel{'s' if channels > 1 else ''}, from {info.source}",
        f"  mean {_numbers(info.mean)}, standard deviation {_numbers(info.std)}, of pixel values in 0..255",
        f"  {files} shards, {size:.1f} MiB; fingerprint {info.fingerprint}",
    ]
    lines += [f"  {kind}: {listed(found, most=12)}" for kind, found in info.files.items()]
    lines += [f"  note: {note}" for note in info.notes]
    if info.classes:
        names = info.class_names or tuple(map(str, range(info.classes)))
        width = max(len("class"), *map(len, names))
        lines.append(f"  {'class'.ljust(width)}  {'  '.join(f'{split:>8}' for split in SPLITS)}")
        lines += [
            f"  {name.ljust(width)}  {'  '.join(f'{info.class_counts[split][at]:8d}' for split in SPLITS)}"
            for at, name in enumerate(names)
        ]
    return [printable(line) for line in lines]


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    exit_process(main())
