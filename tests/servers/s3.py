"""A real S3 server of a test's own."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from pyarrow import fs


class S3Server:
    """Runs while used as a context manager, with one empty bucket.

    Attributes:
        settings: the environment variables that point to it.
    """

    def __init__(self, bucket: str) -> None:
        """Takes ports, and starts nothing yet."""
        self._bucket, self._ports = bucket, _free_ports(4)
        self._folder = Path(tempfile.mkdtemp(prefix="dualview-s3-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.settings = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._ports[3]}", "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def __enter__(self) -> Self:
        """Start it, and make the bucket."""
        self.start()
        files = fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{self._ports[3]}", scheme="http", allow_bucket_creation=True,
            access_key="any", secret_key="any", region="us-east-1",
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                files.create_dir(self._bucket)
                return self
            except OSError:
                assert self._process is not None
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, with what it holds."""
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": "any", "secretKey": "any"}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (self._folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        master, volume, filer, s3 = self._ports
        weed = [
            str(Path(sys.executable).parent / "weed"), "server", "-s3", "-s3.port.iceberg=0",
            "-s3.autoCreateBucket=false", f"-s3.config={self._folder / 's3.json'}", f"-master.port={master}",
            f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1", f"-dir={self._folder}", "-master.volumeSizeLimitMB=64",
        ]  # fmt: skip
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(weed, stdout=log, stderr=log, cwd=self._folder)

    def stop(self) -> None:
        """Kill it: when asked to end it takes half a minute."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, nor 10000 above, where the server puts its gRPC; all of them different."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            low, high = (held.enter_context(socket.socket()) for _ in range(2))
            low.bind(("127.0.0.1", 0))
            with suppress(OSError, OverflowError):  # which is taken, by another of these too
                high.bind(("127.0.0.1", low.getsockname()[1] + 10_000))
                found.append(low.getsockname()[1])
    return found
