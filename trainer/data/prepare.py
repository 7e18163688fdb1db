"""Prepares any source into a folder or an S3 prefix; an interrupted preparation resumes, a finished one is reused."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffusion import durable
from trainer.config.data import DataConfig
from trainer.config.run_config import canonical
from trainer.data.arrays import load_array
from trainer.data.dataset import Dataset
from trainer.data.files import Source, scan_files
from trainer.data.manifest import FILE, FORMAT_VERSION, MAX_REJECTED, DatasetInfo, parse
from trainer.data.sources import check_source, is_array, prepared_info
from trainer.data.store import Store, is_s3
from trainer.data.writer import Block, heldout_rows, write_dataset
from trainer.errors import InputError
from trainer.files import file_lock

DECODER_VERSION = 1
"""Increased whenever the same source would decode to other pixels."""

PARTS_FOLDER = ".parts"
PREPARATION_FILE = re.compile(r"(train|heldout)-\d{5}\.arrow|rejected\.parquet|\.parts|\.writing-.*")
BLOCK_ROWS = 4096
LOCK_TIMEOUT_S = 24 * 3600.0


def scan_source(data: DataConfig) -> tuple[Source | None, str]:
    """Scan a source: its files (None for an array), and the plan, the SHA-256 of everything that preparing depends on.

    Raises:
        InputError: it has no images.
    """
    source = None if is_array(data.source) else scan_files(data)
    if source:
        place, files = source.url, source.files
    elif data.source == "digits":
        place, files = "digits", ()
    else:
        state = Path(data.source).stat()
        place, files = os.path.abspath(data.source), ((Path(data.source).name, state.st_size, state.st_mtime_ns),)
    settings = data.identity() | {"source": place}
    return source, _digest({"version": [FORMAT_VERSION, DECODER_VERSION], "settings": settings, "files": files})


def prepare_into(
    data: DataConfig,
    store: Store,
    scan: tuple[Source | None, str],
    max_rejected: float = MAX_REJECTED,
    print_line: Callable[[str], None] = print,
) -> DatasetInfo:
    """Prepare a source, unless that is done already.

    Args:
        data: the source and its settings.
        store: the destination.
        scan: result of `scan_source(data)`.
        max_rejected: largest allowed fraction of rejected images.
        print_line: called with each line of progress.

    Raises:
        InputError: the source is invalid, or the destination holds something else.
    """
    source, plan = scan
    if (done := _done(store, plan)) is not None:
        return done
    with _held(store):
        if (done := _done(store, plan)) is not None:
            return done
        known = DatasetInfo(
            source=data.source,
            fingerprint="",
            image_shape=(0, 0, 0),
            train=0,
            heldout=0,
            classes=0,
            heldout_fraction=data.heldout_fraction,
            split_seed=data.split_seed,
            plan=plan,
        )
        if source is None:
            info = _prepare_array(data, store, known)
        else:
            from trainer.data.ray_job import prepare_files

            folder = f"{PARTS_FOLDER}/{_parts_key(data, source)}"
            info = prepare_files(data, source, store, folder, known, max_rejected, print_line)
        store.remove_folder(PARTS_FOLDER)
        return info


def _done(store: Store, plan: str) -> DatasetInfo | None:
    """The data set that this plan has already prepared there; None where there are only parts, or nothing.

    Raises:
        InputError: the destination holds something else.
    """
    try:
        text = None if store.size(FILE) is None else store.read(FILE)
        foreign = [] if text else [name for name in store.names() if not PREPARATION_FILE.fullmatch(name)]
    except OSError as error:
        raise InputError(f"{store.url}: {' '.join(str(error).split())}; allowed: a writable folder") from None
    if foreign:
        raise InputError(f"{store.url}: holds {foreign[0]}; allowed: a new or an empty folder")
    if text is None:
        return None
    info = parse(text, store.url)
    if info.plan != plan:
        raise InputError(
            f"{store.url}: holds {info.source!r} prepared otherwise: with other settings, or before its files "
            "changed; allowed: a new or an empty folder"
        )
    return info


def _prepare_array(data: DataConfig, store: Store, known: DatasetInfo) -> DatasetInfo:
    images = load_array(data)
    count, height, width, channels = images.pixels.shape
    name = Path(data.source).name

    def blocks() -> Iterator[Block]:
        for first in range(0, count, BLOCK_ROWS):
            pixels = np.ascontiguousarray(images.pixels[first : first + BLOCK_ROWS])
            yield Block(pixels, [f"{name}:{row}" for row in range(first, first + len(pixels))])

    shape = (channels, height, width)
    known = replace(known, image_shape=shape, classes=int(images.labels.max()) + 1)
    return write_dataset(store, blocks, images.labels, heldout_rows(images.labels, data), known)


def _parts_key(data: DataConfig, source: Source) -> str:
    """Folder name of the parts, a digest of what they depend on, which the split is not part of."""
    settings = [source.image_column, source.label_column, data.size, data.channels]
    return _digest({"version": DECODER_VERSION, "settings": settings, "url": source.url, "files": source.files})[:16]


@contextmanager
def _held(store: Store) -> Iterator[None]:
    """Lock the destination against other processes on this file system; a prefix on S3 is not locked."""
    lock = f"{PARTS_FOLDER}/lock"
    try:
        if store.local:
            durable.make_folder(Path(store.path(PARTS_FOLDER)))
        else:
            store.write(lock, b"")  # fails early where the prefix is not writable
    except OSError as error:
        raise InputError(f"{store.url}: {' '.join(str(error).split())}; allowed: a writable folder or prefix") from None
    if not store.local:
        yield
        return
    with file_lock(Path(store.path(lock)), f"{store.url}: another process is preparing it", LOCK_TIMEOUT_S):
        yield


def _digest(values: object) -> str:
    return hashlib.sha256(canonical(values).encode()).hexdigest()


def prepare(data: DataConfig, storage: Path) -> Dataset:
    """The data set of a run: its source, which is prepared first unless that is done.

    Raises:
        InputError: the source does not exist, holds no images, or was prepared with other settings.
    """
    check_source(data)
    info = prepared_info(data.source)
    if info is None:
        scan = scan_source(data)
        folder = storage / "datasets" / scan[1][:16]
        _forget_damaged(folder)
        info = prepare_into(data, Store(str(folder)), scan)
    elif is_s3(data.source):
        folder = storage / "datasets" / f"s3-{info.fingerprint[:16]}"
        info = replace(info, location=Store(data.source).url)
        Store(str(folder)).write(FILE, info.to_json().encode())
    else:
        folder = Path(data.source).absolute()
        _check_complete(folder, info)
    return Dataset(folder, replace(info, source=data.source))


def _forget_damaged(folder: Path) -> None:
    """Remove a manifest that cannot be read from a folder of ours, whose data are then prepared again."""
    file = folder / FILE
    try:
        if file.is_file():
            parse(file.read_bytes(), str(folder))
    except InputError:
        print(f"warning: {file} is damaged; the data are prepared again", flush=True)
        file.unlink(missing_ok=True)


def _check_complete(folder: Path, info: DatasetInfo) -> None:
    for shard in (shard for shards in info.shards.values() for shard in shards):
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise InputError(f"{path}: missing or incomplete; allowed: a file of {shard.bytes} bytes, as {FILE} says")
