"""Checks of data.source before anything is read. No torch, no Ray, and no pyarrow for local sources."""

from pathlib import Path

from trainer.config.data import DataConfig
from trainer.data.manifest import (
    FILE,
    DatasetInfo,
    check_agrees,
    check_no_columns,
    check_no_white_level,
    parse_ours,
    read_manifest,
)
from trainer.errors import InputError

ALLOWED = (
    "digits; the path of a .npy or .parquet file, of a folder of images or of Parquet files, or of a prepared folder; "
    "or s3://bucket/prefix of all but .npy"
)


def is_array(source: str) -> bool:
    """Whether a source is a single array that is read in this process: the digits, or a .npy file."""
    return source == "digits" or source.endswith(".npy")


def check_source(data: DataConfig) -> None:
    """Refuse a source that does not exist or was prepared with other settings, without reading images.

    Raises:
        InputError: naming the setting.
    """
    source = data.source
    if not is_there(source):
        raise InputError(f"data.source = {source!r}: no such data; allowed: {ALLOWED}")
    if is_array(source):
        check_no_columns(data, "has none")
        check_no_white_level(data, "has 8 bits")
        if data.split == "source":
            raise InputError(f"data.split = source: data.source = {source!r} has no splits; allowed: auto, or seeded")
    elif (info := prepared_info(source)) is not None:
        check_agrees(info, data)


def is_there(source: str) -> bool:
    """Whether the source exists and is of a kind that can be read.

    Raises:
        InputError: S3 does not respond.
    """
    if source == "digits":
        return True
    if source.startswith("s3://"):
        return not is_array(source) and _on_s3(source)
    path = Path(source)
    return path.is_dir() or (path.suffix in (".npy", ".parquet") and path.is_file())


def prepared_info(source: str) -> DatasetInfo | None:
    """The manifest of a prepared folder or prefix; None for any other source.

    Raises:
        InputError: it has another format version, or S3 does not respond.
    """
    if source.startswith("s3://"):
        from trainer.data.store import Store

        try:
            store = Store(source)
            return None if store.size(FILE) is None else parse_ours(store.read(FILE), source)
        except (OSError, ValueError) as error:
            raise InputError(f"data.source = {source!r}: {_line(error)}") from None
    file = Path(source) / FILE
    return parse_ours(read_manifest(file), source) if file.is_file() else None


def _on_s3(source: str) -> bool:
    from pyarrow import fs

    from trainer.data.store import Store

    try:
        store = Store(source)
        return bool(store.root) and store.files.get_file_info(store.root).type != fs.FileType.NotFound
    except OSError as error:
        raise InputError(f"data.source = {source!r}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
