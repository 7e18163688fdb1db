"""Prepares many files as a Ray Data job: image sizes from headers, decoded parts, then one data set from all parts."""

import errno
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.config.data import DataConfig
from trainer.data.assignment import assign, by_suffix, kinds, left_out_of_splits
from trainer.data.files import Partition, Source, no_images
from trainer.data.manifest import DatasetInfo, listed
from trainer.data.staging import (
    LEFT_OUT,
    REJECTED,
    PreparationTask,
    StagedParts,
    common_size,
    count_sizes,
    decode_partition,
)
from trainer.data.store import Store
from trainer.data.writer import write_dataset
from trainer.errors import InputError, RunFailedError

REJECTED_FILE = "rejected.parquet"
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
    light = replace(source, partitions=(), files=(), metadata=None, left_out=())
    task = PreparationTask(light, store.url, folder, size, data.channels, data.white_level)
    done = {f"{folder}/{name}" for name, _ in store.listing(folder)}
    if size is None:
        remaining = [partition for partition in source.partitions if task.sizes_name(partition) not in done]
        _run_partitions(
            partial(_run_partition, count_sizes, task), remaining, len(source.partitions), "sizes", print_line
        )
        task = replace(task, size=common_size(task, source.partitions) or (1, 1))
    remaining = [partition for partition in source.partitions if task.images_name(partition) not in done]
    _run_partitions(
        partial(_run_partition, decode_partition, task), remaining, len(source.partitions), "images", print_line
    )
    parts = StagedParts(task, source.partitions)
    assert task.size is not None, "sizes were counted"
    rejected, left_out = parts.unused(REJECTED), parts.unused(LEFT_OUT)
    left_out = pa.concat_tables([left_out, _not_looked_at(source, left_out.schema)])
    _write_unused(rejected, left_out, store)
    _check_rejected(rejected, left_out, len(parts.good), store, data.source, max_rejected)
    found = assign(parts.good, source, data)
    if len(found.unused):
        left_out = pa.concat_tables([left_out, left_out_of_splits(parts.good, found.unused)])
        _write_unused(rejected, left_out, store)
    used = parts.good.take(pa.array(found.used))
    print_line(f"writing {len(used)} images of {task.size[0]} x {task.size[1]}, {parts.channels} channels")
    known = replace(
        known,
        image_shape=(parts.channels, task.size[1], task.size[0]),
        classes=len(found.names) or int(found.labels.max()) + 1,
        class_names=found.names,
        rejected=len(rejected),
        left_out=len(left_out),
        peak=parts.peak,
        split=found.split,
        files=kinds(used, rejected, left_out),
        notes=found.notes,
    )
    return write_dataset(store, parts.blocks, found.labels, found.members, known)


def _run_partition(
    action: Callable[[PreparationTask, Partition], None], task: PreparationTask, row: dict[str, Any]
) -> dict[str, Any]:
    """Run an action on one partition; the result says what was wrong with the source's file, if anything."""
    values = json.loads(row["partition"])
    partition = Partition(**{**values, "files": tuple(values["files"])})
    try:
        action(task, partition)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return {"problem": f"{task.url}: {' '.join(str(error).split())[:300]}", "is_full": True}
        where = "" if partition.row_group is None else f", row group {partition.row_group}"
        return {"problem": f"{partition.files[0]}{where}: {' '.join(str(error).split())[:300]}", "is_full": False}
    return {"problem": "", "is_full": False}


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

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach us, and need no second text
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    tasks = max(1, int(TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    items = [{"partition": json.dumps(asdict(partition))} for partition in partitions]
    answers = ray.data.from_items(items, override_num_blocks=min(len(items), tasks)).map(action).iter_rows()
    reported = 0
    for done, answer in enumerate(answers, total - len(partitions) + 1):
        if answer["is_full"]:
            raise RunFailedError(f"{answer['problem']}; allowed: more space there")
        if answer["problem"]:
            raise InputError(f"data.source: {answer['problem']}")
        if done * PROGRESS_LINES // total > reported or done == total:
            reported = done * PROGRESS_LINES // total
            print_line(f"{what}: {done} of {total} parts ({done / total:.0%})")


def _not_looked_at(source: Source, schema: pa.Schema) -> pa.Table:
    rows = [{"path": path, "row": None, "reason": reason} for path, reason in source.left_out]
    return pa.Table.from_pylist(rows, schema)


def _write_unused(rejected: pa.Table, left_out: pa.Table, store: Store) -> None:
    kinds = pa.array([REJECTED] * len(rejected) + [LEFT_OUT] * len(left_out), pa.string())
    table = BytesIO()
    pq.write_table(pa.concat_tables([rejected, left_out]).append_column("kind", kinds), table)
    store.write(REJECTED_FILE, table.getvalue())


def _check_rejected(
    rejected: pa.Table, left_out: pa.Table, usable: int, store: Store, source: str, max_rejected: float
) -> None:
    total = len(rejected) + usable
    if not total:
        raise no_images(f"data.source = {source!r}", left_out["path"].to_pylist())
    if not usable:
        raise InputError(f"data.source = {source!r}: no usable image among {total}; the first: {_first(rejected)}")
    if len(rejected) > max_rejected * total:
        kinds = "" if rejected["row"].null_count < len(rejected) else f" ({listed(by_suffix(rejected))})"
        raise InputError(
            f"--max-rejected = {max_rejected:g}: {len(rejected)} of {total} images are rejected{kinds}, the first "
            f"{_first(rejected)}; allowed: repair them (listed in {store.url}/{REJECTED_FILE}), or run "
            "`python -m trainer.data prepare` with a larger fraction"
        )


def _first(rejected: pa.Table) -> str:
    first = rejected.slice(0, 1).to_pylist()[0]
    return first["path"] + ("" if first["row"] is None else f":{first['row']}") + f" ({first['reason']})"
