"""`python -m tests.benchmarks.prepare`: what preparing images costs, by rows and by CPUs.

Makes Parquet files of grey PNGs, 28 x 28 or `--side`, in row groups of 1000, and prepares them with each number of
CPUs, in processes and Ray sessions of their own, in turns. Seconds are those of the preparation alone, not of Ray's
start; the peak is the driver's resident memory. Results go to docs/benchmarks.md by hand, with machine and date.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from trainer.config.data import DataConfig

ROWS_PER_GROUP = 1000


def make(path: Path, rows: int, side: int = 28) -> None:
    """A Parquet file of blurred noise, ten classes."""
    random = np.random.default_rng(0)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": kind, "label": pa.int64()})
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, ROWS_PER_GROUP):
            count = min(ROWS_PER_GROUP, rows - first)
            small = random.integers(0, 256, (count, 7, 7), dtype=np.uint8)
            files = []
            for levels in small:
                file = BytesIO()
                Image.fromarray(levels).resize((side, side)).save(file, "PNG")
                files.append({"bytes": file.getvalue(), "path": None})
            labels = np.arange(first, first + count) % 10
            writer.write_table(pa.table([pa.array(files, kind), pa.array(labels)], schema=schema))


def prepared_here(source: str, dest: str, cpus: int) -> None:
    """Prepare in this process, and print what it took as JSON."""
    import ray

    from trainer.data.prepare import prepare_into, scan_source
    from trainer.data.store import Store

    ray.init(num_cpus=cpus, log_to_driver=False)
    data = DataConfig(source=source)
    started = time.perf_counter()
    info = prepare_into(data, Store(dest), scan_source(data), print_line=lambda _: None)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "fingerprint": info.fingerprint}))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prepare", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--cpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("SOURCE", "DEST", "CPUS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        source, dest, cpus = options.one
        prepared_here(source, dest, int(cpus))
        return
    with tempfile.TemporaryDirectory() as folder:
        print("| rows | CPUs | seconds | rows/s | driver's peak MiB | fingerprint |\n|---|---|---|---|---|---|")
        for rows in options.rows:
            make(Path(folder) / f"{rows}.parquet", rows, options.side)
        found: dict[tuple[int, int], list[dict]] = {}
        for repeat in range(options.repeats):
            for rows in options.rows:
                for cpus in options.cpus:
                    dest = f"{folder}/{rows}-{cpus}-{repeat}"
                    command = [sys.executable, "-m", "tests.benchmarks.prepare", "--one", f"{folder}/{rows}.parquet"]
                    answer = subprocess.run(
                        [*command, dest, str(cpus)], check=True, capture_output=True, text=True, env=dict(os.environ)
                    )
                    found.setdefault((rows, cpus), []).append(json.loads(answer.stdout.splitlines()[-1]))
        for (rows, cpus), runs in found.items():
            seconds = [run["seconds"] for run in runs]
            spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
            peak, prints = max(run["peak"] for run in runs), {run["fingerprint"][:8] for run in runs}
            rate = rows / statistics.median(seconds)
            print(f"| {rows} | {cpus} | {spread} | {rate:.0f} | {peak:.0f} | {', '.join(prints)} |")


if __name__ == "__main__":
    main()
