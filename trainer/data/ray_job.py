"""Prepares many files as a Ray Data job: image sizes from headers, decoded parts, then one data set from all parts."""

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
from trainer.data.files import Partition, Source
from trainer.data.manifest import DatasetInfo
from trainer.data.staging import PreparationTask, StagedParts, count_sizes, decode_partition, modal_size
from trainer.data.store import Store
from trainer.data.writer import heldout_rows, write_dataset
from trainer.errors import InputError

REJECTED = "rejected.parquet"
TASKS_PER_CPU = 8
"""Enough for an even load, few enough that Ray Data's overhead per task is negligible."""
PROGRESS_LINES = 10  # printed per stage

PrintLine = Callable[[str], None]


def prepare_files(
    data: DataConfig,
    source: Source,
    store: Store,
    folder: str,
    known: DatasetInfo,
    max_rejected: float,
    print_line: PrintLine,
) -> DatasetInfo:
    """Prepare a source of many files.

    Args:
        data: the settings.
        source: the scanned source.
        store: the destination.
        folder: folder of the parts in `store`.
        known: the fields of the manifest that are known beforehand.
        max_rejected: largest allowed fraction of rejected images.
        print_line: called with each line of progress.

    Raises:
        InputError: no usable image, too many rejected ones, labels without classes, or a file that cannot be read.
    """
    size = (data.size, data.size) if data.size else None
    task = PreparationTask(replace(source, partitions=(), files=()), store.url, folder, size, data.channels)
    done = {f"{folder}/{name}" for name, _ in store.listing(folder)}
    if size is None:
        remaining = [partition for partition in source.partitions if task.sizes_name(partition) not in done]
        _run_partitions(
            partial(_run_partition, count_sizes, task), remaining, len(source.partitions), "sizes", print_line
        )
        task = replace(task, size=modal_size(task, source.partitions) or (1, 1))
    remaining = [partition for partition in source.partitions if task.images_name(partition) not in done]
    _run_partitions(
        partial(_run_partition, decode_partition, task), remaining, len(source.partitions), "images", print_line
    )
    parts = StagedParts(task, source.partitions)
    _write_rejected(parts, store, data.source, max_rejected)
    assert task.size is not None, "sizes were counted"
    labels, names = resolve_labels(parts.good, source, data)
    heldout = heldout_rows(labels, data)
    print_line(f"writing {len(labels)} images of {task.size[0]} x {task.size[1]}, {parts.channels} channels")
    known = replace(
        known,
        image_shape=(parts.channels, task.size[1], task.size[0]),
        classes=len(names) or int(labels.max()) + 1,
        class_names=names,
        rejected=len(parts.rejected),
    )
    return write_dataset(store, parts.blocks, labels, heldout, known)


def _run_partition(
    action: Callable[[PreparationTask, Partition], None], task: PreparationTask, row: dict[str, Any]
) -> dict[str, Any]:
    """Run an action on one partition; the result says what was wrong with the source's file, if anything."""
    values = json.loads(row["partition"])
    partition = Partition(**{**values, "files": tuple(values["files"])})
    try:
        action(task, partition)
    except (OSError, pa.ArrowException) as error:
        where = "" if partition.row_group is None else f", row group {partition.row_group}"
        return {"problem": f"{partition.files[0]}{where}: {' '.join(str(error).split())[:300]}"}
    return {"problem": ""}


def _run_partitions(
    action: Callable[[dict[str, Any]], dict[str, Any]],
    partitions: list[Partition],
    total: int,
    what: str,
    print_line: PrintLine,
) -> None:
    """Run an action on the remaining partitions with Ray Data, and print progress."""
    if len(partitions) < total:
        print_line(f"{what}: {total - len(partitions)} of {total} parts are done already")
    if not partitions:
        return
    from trainer.runtime.ray_cluster import connect_ray

    connect_ray()
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    tasks = max(1, int(TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    items = [{"partition": json.dumps(asdict(partition))} for partition in partitions]
    answers = ray.data.from_items(items, override_num_blocks=min(len(items), tasks)).map(action).iter_rows()
    reported = 0
    for done, answer in enumerate(answers, total - len(partitions) + 1):
        if answer["problem"]:
            raise InputError(f"data.source: {answer['problem']}")
        if done * PROGRESS_LINES // total > reported or done == total:
            reported = done * PROGRESS_LINES // total
            print_line(f"{what}: {done} of {total} parts ({done / total:.0%})")


def _write_rejected(parts: StagedParts, store: Store, source: str, max_rejected: float) -> None:
    rejected, total = parts.rejected, len(parts.image_records)
    table = BytesIO()
    pq.write_table(rejected, table)
    store.write(REJECTED, table.getvalue())
    if len(rejected) == total:
        why = f"; the first: {_first(rejected)}" if total else ""
        raise InputError(f"data.source = {source!r}: no usable image among {total}{why}")
    if len(rejected) > max_rejected * total:
        raise InputError(
            f"--max-rejected = {max_rejected:g}: {len(rejected)} of {total} images are rejected, the first "
            f"{_first(rejected)}; allowed: repair them (listed in {store.url}/{REJECTED}), or run "
            "`python -m trainer.data prepare` with a larger fraction"
        )


def _first(rejected: pa.Table) -> str:
    first = rejected.slice(0, 1).to_pylist()[0]
    return first["path"] + ("" if first["row"] is None else f":{first['row']}") + f" ({first['reason']})"


def resolve_labels(good: pa.Table, source: Source, data: DataConfig) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The labels of the usable images, int64 [N], and the names of the classes, empty where they have none.

    Raises:
        InputError: labels without classes.
    """
    is_text = source.labels == "text"
    column = good["text" if is_text else "label"].combine_chunks()
    missing = column.is_null().to_numpy(zero_copy_only=False)
    names = source.class_names
    if missing.all():
        labels = np.full(len(missing), -1, dtype=np.int64)
    elif is_text:
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
            f"data.label_column = {NO_LABELS} to ignore labels"
        )
    if names:
        if labels.max() >= len(names):
            raise InputError(f"{where}: {int(labels.max())} is the label of an image; allowed: 0 to {len(names) - 1}")
        return labels, names
    present = np.unique(labels)
    if len(present) != present[-1] + 1:
        absent = next(n for n, label in enumerate(present) if n != label)
        raise InputError(
            f"{where}: labels go up to {int(present[-1])}, but no image has {absent}; allowed: 0 to K - 1, or text"
        )
    return labels, ()
