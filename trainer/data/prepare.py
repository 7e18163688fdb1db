"""Prepares any source into a folder or an S3 prefix; the same again finds it done, a killed preparation goes on."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.config.data import DataConfig
from trainer.config.run_config import canonical
from trainer.data.arrays import load_array
from trainer.data.dataset import Dataset
from trainer.data.files import Source, find
from trainer.data.manifest import FILE, FORMAT_VERSION, MAX_REJECTED, DatasetInfo, parse
from trainer.data.sources import check_source, is_array, prepared_info
from trainer.data.store import Store, is_s3
from trainer.data.writer import Block, heldout_rows, write_dataset
from trainer.errors import InputError
from trainer.files import file_lock

DECODER_VERSION = 1
"""Rises when the same source would give other pixels."""

PARTS = ".parts"
OURS = re.compile(r"(train|heldout)-\d{5}\.arrow|rejected\.parquet|\.parts|\.writing-.*")
BLOCK_ROWS = 4096
PATIENCE_S = 24 * 3600.0


def scan_source(data: DataConfig) -> tuple[Source | None, str]:
    """A source of many files as it was found (None for an array), and the SHA-256 of all that preparing depends on.

    Raises:
        InputError: nothing there that could be images.
    """
    found = None if is_array(data.source) else find(data)
    if found:
        place, files = found.url, found.files
    elif data.source == "digits":
        place, files = "digits", ()
    else:
        state = Path(data.source).stat()
        place, files = os.path.abspath(data.source), ((Path(data.source).name, state.st_size, state.st_mtime_ns),)
    settings = data.identity() | {"source": place}
    return found, _digest({"version": [FORMAT_VERSION, DECODER_VERSION], "settings": settings, "files": files})


def prepare_into(
    data: DataConfig,
    store: Store,
    scan: tuple[Source | None, str],
    max_rejected: float = MAX_REJECTED,
    say: Callable[[str], None] = print,
) -> DatasetInfo:
    """Prepare a source, unless it is done.

    Args:
        data: the source and what is made of it.
        store: where to.
        scan: what `scan_source` says.
        max_rejected: the largest fraction of images that may be left out.
        say: takes lines for a person.

    Raises:
        InputError: anything wrong with the source, or a destination that holds something else.
    """
    found, plan = scan
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
        if found is None:
            info = _prepare_array(data, store, known)
        else:
            from trainer.data.ray_job import prepare_files

            folder = f"{PARTS}/{_parts_key(data, found)}"
            info = prepare_files(data, found, store, folder, known, max_rejected, say)
        store.remove_folder(PARTS)
        return info


def _done(store: Store, plan: str) -> DatasetInfo | None:
    """What is prepared there by this plan already; None where there is nothing but parts.

    Raises:
        InputError: something else is there.
    """
    try:
        text = None if store.size(FILE) is None else store.read(FILE)
        strange = [] if text else [name for name in store.names() if not OURS.fullmatch(name)]
    except OSError as error:
        raise InputError(f"{store.url}: {' '.join(str(error).split())}; allowed: a folder to write to") from None
    if strange:
        raise InputError(f"{store.url}: holds {strange[0]}; allowed: a new or an empty folder")
    if text is None:
        return None
    info = parse(text, store.url)
    if info.plan != plan:
        raise InputError(
            f"{store.url}: holds {info.source!r} prepared otherwise, or as it was before a change; allowed: a new or "
            "an empty folder"
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


def _parts_key(data: DataConfig, found: Source) -> str:
    """Names the parts by what they depend on: not by the split."""
    settings = [found.image_column, found.label_column, data.size, data.channels]
    return _digest({"version": DECODER_VERSION, "settings": settings, "url": found.url, "files": found.files})[:16]


@contextmanager
def _held(store: Store) -> Iterator[None]:
    """Keep other processes on this file system from preparing into the same folder."""
    lock = f"{PARTS}/lock"
    try:
        if store.local:
            Path(store.path(PARTS)).mkdir(parents=True, exist_ok=True)
        else:
            store.write(lock, b"")  # to see at once whether it can be
    except OSError as error:
        raise InputError(f"{store.url}: {' '.join(str(error).split())}; allowed: a place to write to") from None
    if not store.local:
        yield
        return
    with file_lock(Path(store.path(lock)), f"{store.url}: another process is preparing it", PATIENCE_S):
        yield


def _digest(values: object) -> str:
    return hashlib.sha256(canonical(values).encode()).hexdigest()


def prepare(data: DataConfig, storage: Path) -> Dataset:
    """The data set of a run: its source as it is prepared, or prepared now.

    Raises:
        InputError: the source is not there, is not images, or is prepared otherwise.
    """
    check_source(data)
    info = prepared_info(data.source)
    if info is None:
        # workers open data sets, and are started often

        scan = scan_source(data)
        folder = storage / "datasets" / scan[1][:16]
        info = prepare_into(data, Store(str(folder)), scan)
    elif is_s3(data.source):
        folder = storage / "datasets" / f"s3-{info.fingerprint[:16]}"
        info = replace(info, location=Store(data.source).url)
        Store(str(folder)).write(FILE, info.to_json().encode())
    else:
        folder = Path(data.source).absolute()
        _check_whole(folder, info)
    return Dataset(folder, replace(info, source=data.source))


def _check_whole(folder: Path, info: DatasetInfo) -> None:
    for shard in (shard for shards in info.shards.values() for shard in shards):
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise InputError(f"{path}: not there or not whole; allowed: {shard.bytes} bytes, as {FILE} says")
