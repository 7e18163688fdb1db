"""The preparation of many files as a Ray Data job: sizes by headers, then images, then one data set of all parts."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.config.data import DataConfig
from trainer.data.columns import NO_LABELS
from trainer.data.files import Source, Unit
from trainer.data.manifest import DatasetInfo
from trainer.data.staging import Parts, Work, count_sizes, decode_unit, modal_size
from trainer.data.store import Store
from trainer.data.writer import heldout_rows, write_dataset
from trainer.errors import InputError

REJECTED = "rejected.parquet"
TASKS_PER_CPU = 8
"""Enough for an even share, and few enough that Ray Data's own work for each does not show."""
LINES = 10

Say = Callable[[str], None]


def prepare_files(
    data: DataConfig, source: Source, store: Store, folder: str, known: DatasetInfo, max_rejected: float, say: Say
) -> DatasetInfo:
    """Prepare a source of many files.

    Args:
        data: the settings.
        source: as it was found.
        store: where to.
        folder: of the parts, in `store`.
        known: what is known of the data set beforehand.
        max_rejected: the largest fraction of images that may be left out.
        say: takes lines for a person.

    Raises:
        InputError: no good image, too many bad ones, labels without classes, or a file that cannot be read.
    """
    size = (data.size, data.size) if data.size else None
    work = Work(replace(source, units=(), files=()), store.url, folder, size, data.channels)
    done = {f"{folder}/{name}" for name, _ in store.listing(folder)}
    if size is None:
        left = [unit for unit in source.units if work.sizes_name(unit) not in done]
        _run_units(partial(_answer, count_sizes, work), left, len(source.units), "sizes", say)
        work = replace(work, size=modal_size(work, source.units) or (1, 1))
    left = [unit for unit in source.units if work.images_name(unit) not in done]
    _run_units(partial(_answer, decode_unit, work), left, len(source.units), "images", say)
    parts = Parts(work, source.units)
    _tell_rejected(parts, store, data.source, max_rejected)
    assert work.size is not None, "sizes were counted"
    labels, names = resolve_labels(parts.good, source, data)
    heldout = heldout_rows(labels, data)
    say(f"writing {len(labels)} images of {work.size[0]} x {work.size[1]}, {parts.channels} channels")
    known = replace(
        known,
        image_shape=(parts.channels, work.size[1], work.size[0]),
        classes=len(names) or int(labels.max()) + 1,
        class_names=names,
        rejected=len(parts.rejected),
    )
    return write_dataset(store, parts.blocks, labels, heldout, known)


def _answer(action: Callable[[Work, Unit], None], work: Work, row: dict[str, Any]) -> dict[str, Any]:
    """A unit's part is written; what comes back is what went wrong with the source's file, if anything."""
    values = json.loads(row["unit"])
    unit = Unit(**{**values, "files": tuple(values["files"])})
    try:
        action(work, unit)
    except (OSError, pa.ArrowException) as error:
        where = "" if unit.row_group is None else f", row group {unit.row_group}"
        return {"problem": f"{unit.files[0]}{where}: {' '.join(str(error).split())[:300]}"}
    return {"problem": ""}


def _run_units(
    action: Callable[[dict[str, Any]], dict[str, Any]], units: list[Unit], total: int, what: str, say: Say
) -> None:
    """Have Ray Data do what is left of the units; which worker does one makes no difference."""
    if len(units) < total:
        say(f"{what}: {total - len(units)} of {total} parts are there already")
    if not units:
        return
    from trainer.runtime.ray_cluster import connect_ray

    connect_ray()
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    tasks = max(1, int(TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    items = [{"unit": json.dumps(asdict(unit))} for unit in units]
    answers = ray.data.from_items(items, override_num_blocks=min(len(items), tasks)).map(action).iter_rows()
    told = 0
    for done, answer in enumerate(answers, total - len(units) + 1):
        if answer["problem"]:
            raise InputError(f"data.source: {answer['problem']}")
        if done * LINES // total > told or done == total:
            told = done * LINES // total
            say(f"{what}: {done} of {total} parts ({done / total:.0%})")


def _tell_rejected(parts: Parts, store: Store, source: str, max_rejected: float) -> None:
    rejected, total = parts.rejected, len(parts.facts)
    table = BytesIO()
    pq.write_table(rejected, table)
    store.write(REJECTED, table.getvalue())
    if len(rejected) == total:
        why = f"; the first: {_first(rejected)}" if total else ""
        raise InputError(f"data.source = {source!r}: no good rows: {total} images, none of them usable{why}")
    if len(rejected) > max_rejected * total:
        raise InputError(
            f"--max-rejected = {max_rejected:g}: {len(rejected)} of {total} images are rejected, the first "
            f"{_first(rejected)}; allowed: to mend them ({store.url}/{REJECTED}), or `python -m "
            "trainer.data prepare` with a larger fraction"
        )


def _first(rejected: pa.Table) -> str:
    first = rejected.slice(0, 1).to_pylist()[0]
    return first["path"] + ("" if first["row"] is None else f":{first['row']}") + f" ({first['reason']})"


def resolve_labels(good: pa.Table, source: Source, data: DataConfig) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The labels of the images that are used, int64 [N], and the names of the classes where they have names.

    Raises:
        InputError: labels without classes.
    """
    texts = source.labels == "text"
    column = good["text" if texts else "label"].combine_chunks()
    missing = column.is_null().to_numpy(zero_copy_only=False)
    names = source.class_names
    if missing.all():
        labels = np.full(len(missing), -1, dtype=np.int64)
    elif texts:
        names = names or tuple(sorted(filter(None, column.unique().to_pylist())))
        places = {name: at for at, name in enumerate(names)}
        labels = np.array([places.get(text, -1) for text in column.to_pylist()], dtype=np.int64)
    else:
        labels = np.where(missing, -1, column.fill_null(-1).to_numpy(zero_copy_only=False)).astype(np.int64)
    if (labels == -1).all():
        return labels, ()
    where = f"data.source = {data.source!r}: labels without classes"
    if (labels < 0).any():
        raise InputError(
            f"{where}: {int((labels < 0).sum())} of {len(labels)} images have none; allowed: labels for all, or "
            f"data.label_column = {NO_LABELS} to leave them out"
        )
    if names:
        if labels.max() >= len(names):
            raise InputError(f"{where}: {int(labels.max())} is the label of an image; allowed: 0 to {len(names) - 1}")
        return labels, names
    present = np.unique(labels)
    if len(present) != present[-1] + 1:
        absent = next(n for n, label in enumerate(present) if n != label)
        raise InputError(
            f"{where}: labels go up to {int(present[-1])}, but no image has {absent}; allowed: 0 to K - 1, or texts"
        )
    return labels, ()
