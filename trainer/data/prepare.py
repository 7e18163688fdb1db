"""Prepares any source into a folder or an S3 prefix; an interrupted preparation resumes, a finished one is reused."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffusion import durable
from trainer.config.data import DataConfig
from trainer.config.run_config import canonical
from trainer.data.arrays import load_array
from trainer.data.dataset import Dataset
from trainer.data.files import Source, scan_files
from trainer.data.fingerprint import verify_folder
from trainer.data.listing import File, Listing, list_source, printable
from trainer.data.manifest import FILE, FORMAT_VERSION, MAX_REJECTED, DatasetInfo, parse, read_manifest
from trainer.data.sources import check_source, is_array, prepared_info
from trainer.data.split import seeded_split
from trainer.data.store import Store, is_s3
from trainer.data.writer import Block, write_dataset
from trainer.errors import InputError
from trainer.files import file_lock

DECODER_VERSION = 2
"""Increased whenever the same source would be read as other images."""
ARRAY_VERSION = 1
"""Likewise for arrays."""
SUFFIXES_OF_DECODER_1 = (
    ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip

PARTS_FOLDER = ".parts"
PREPARATION_FILE = re.compile(r"(train|heldout)-\d{5}\.arrow|rejected\.parquet|\.parts|\.writing-.*")
EARLIER = "prepared by an earlier version"
BLOCK_ROWS = 4096
LOCK_TIMEOUT_S = 24 * 3600.0
Stamp = tuple[str, int, int]
"""Path, size in bytes and modification time in ns of a file, to detect that a source has changed."""


@dataclass(frozen=True)
class Scan:
    """What a preparation starts from.

    Attributes:
        source: the scanned source; None for an array.
        plan: SHA-256 of everything that preparing depends on.
        earlier: the plan of the same by the version before, which took files by their suffix.
    """

    source: Source | None
    plan: str
    earlier: str | None = None


def scan_source(data: DataConfig, listing: Listing | None = None) -> Scan:
    """Scan a source.

    Args:
        data: the source and its settings.
        listing: of a source of files; None to list it here.

    Raises:
        InputError: it has no images.
    """
    if is_array(data.source):
        if data.source == "digits":
            place, stamps = "digits", []
        else:
            state = Path(data.source).stat()
            place, stamps = os.path.abspath(data.source), [(Path(data.source).name, state.st_size, state.st_mtime_ns)]
        return Scan(None, _plan(data, place, ARRAY_VERSION, stamps))
    listing = listing or _listed(data)
    source = scan_files(data, listing)
    plan = _plan(data, source.url, DECODER_VERSION, _stamps(source.files))
    return Scan(source, plan, earlier_plan(data, listing))


def _listed(data: DataConfig) -> Listing:
    try:
        return list_source(Store(data.source))
    except OSError as error:
        raise InputError(f"data.source = {data.source!r}: {' '.join(str(error).split())[:300]}") from None


def earlier_plan(data: DataConfig, listing: Listing) -> str:
    """The plan of the version before, which took Parquet files, or else images by their suffix."""
    there = [file for file in listing.files if (file.size, file.mtime_ns) != (0, 0)]  # links that are broken are not
    taken = [file for file in there if file.path.endswith(".parquet")]
    taken = taken or [file for file in there if file.path.lower().endswith(SUFFIXES_OF_DECODER_1)]
    return _plan(data, Store(data.source).url, 1, [(file.path, file.size, file.mtime_ns) for file in taken])


def _plan(data: DataConfig, place: str, version: int, stamps: Sequence[Stamp]) -> str:
    settings = data.identity() | {"source": place}
    return _digest({"version": [FORMAT_VERSION, version], "settings": settings, "files": stamps})


def _stamps(files: Sequence[File]) -> list[Stamp]:
    return [(printable(file.path), file.size, file.mtime_ns) for file in files]


def prepare_into(
    data: DataConfig,
    store: Store,
    scan: Scan,
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
    if (done := _done(store, scan)) is not None:
        return done
    with _held(store):
        if (done := _done(store, scan)) is not None:
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
            plan=scan.plan,
        )
        if scan.source is None:
            info = _prepare_array(data, store, known)
        else:
            from trainer.data.ray_job import prepare_files

            folder = f"{PARTS_FOLDER}/{_parts_key(data, scan.source)}"
            info = prepare_files(data, scan.source, store, folder, known, max_rejected, print_line)
        store.remove_folder(PARTS_FOLDER)
        return info


def _done(store: Store, scan: Scan) -> DatasetInfo | None:
    """The data set that this plan has already prepared there; None where there are only parts, or nothing.

    Raises:
        InputError: the destination holds something else.
    """
    try:
        text = None if store.size(FILE) is None else store.read(FILE)
        foreign = [] if text else [name for name in store.names() if not PREPARATION_FILE.fullmatch(name)]
    except (OSError, ValueError) as error:
        raise InputError(f"{store.url}: {' '.join(str(error).split())}; allowed: a writable folder") from None
    if foreign:
        raise InputError(f"{store.url}: holds {foreign[0]}; allowed: a new or an empty folder")
    if text is None:
        return None
    info = parse(text, store.url)
    if info.plan == scan.earlier != scan.plan:
        print(f"note: {EARLIER}; in another folder, the source is prepared anew", flush=True)
        return info
    if info.plan != scan.plan:
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
    members, notes = seeded_split(images.labels, data)
    return write_dataset(store, blocks, images.labels, members, replace(known, notes=tuple(notes)))


def _parts_key(data: DataConfig, source: Source) -> str:
    """Folder name of the parts, a digest of what they depend on, which the split is not part of."""
    settings = [source.image_column, source.label_column, data.size, data.channels, data.white_level]
    files = _stamps(source.files)
    return _digest({"version": DECODER_VERSION, "settings": settings, "url": source.url, "files": files})[:16]


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

    What an earlier version prepared from the same files with the same settings is taken as it is.

    Raises:
        InputError: the source does not exist, holds no images, or was prepared with other settings.
    """
    check_source(data)
    info = prepared_info(data.source)
    if info is None:
        listing = None if is_array(data.source) else _listed(data)
        older = storage / "datasets" / earlier_plan(data, listing)[:16] if listing else None
        if older is not None and _is_prepared(older):
            folder = older
            info = parse(read_manifest(folder / FILE), str(folder))
            print(f"  note: {EARLIER}: {folder} (without it, they are prepared anew)", flush=True)
        else:
            scan = scan_source(data, listing)
            folder = storage / "datasets" / scan.plan[:16]
            if not _is_prepared(folder):
                _check_apart(data.source, storage)
            info = prepare_into(data, Store(str(folder)), scan)
        for note in info.notes:
            print(f"  note: {printable(note)}", flush=True)
    elif is_s3(data.source):
        _check_sizes(Store(data.source), info)
        info = replace(info, location=Store(data.source).url)
        manifest = info.to_json().encode()
        folder = storage / "datasets" / f"s3-{hashlib.sha256(manifest).hexdigest()[:16]}"  # no other data set's
        Store(str(folder)).write(FILE, manifest)
    else:
        folder = Path(data.source).absolute()
        verify_folder(Dataset(folder, info), storage / "datasets" / "verified")
    return Dataset(folder, replace(info, source=data.source))


def _check_apart(source: str, storage: Path) -> None:
    """Refuse storage inside a folder of images, which would find there what a run writes, and change with it.

    Raises:
        InputError: it lies inside.
    """
    if source == "digits" or is_s3(source):
        return
    folder = Path(source).resolve()
    if folder in (storage.resolve(), *storage.resolve().parents):
        raise InputError(f"run.storage = {str(storage)!r}: lies inside data.source = {source!r}; allowed: outside it")


def _is_prepared(folder: Path) -> bool:
    """Whether a folder of ours holds a data set. A manifest that cannot be read is removed."""
    file = folder / FILE
    try:
        return file.is_file() and bool(parse(read_manifest(file), str(folder)))
    except InputError:
        print(f"warning: {file} is damaged; the data are prepared again", flush=True)
        file.unlink(missing_ok=True)
        return False


def _check_sizes(store: Store, info: DatasetInfo) -> None:
    """Refuse a prefix whose shards are not there, or not of the sizes that its manifest says.

    Raises:
        InputError: naming the shard, or S3 does not respond.
    """
    try:
        sizes = {name: found.size for name, found in store.listing()}
    except OSError as error:
        raise InputError(f"data.source = {store.url!r}: {' '.join(str(error).split())[:300]}") from None
    for shard in (shard for shards in info.shards.values() for shard in shards):
        if sizes.get(shard.name) != shard.bytes:
            raise InputError(
                f"{store.url}/{shard.name}: missing or incomplete; allowed: {shard.bytes} bytes, as {FILE} says"
            )
