"""A queue in Postgres: for several machines.

One dispatcher of any number leads. It has a lease, which it renews every RENEW_S seconds; when it has not done so for
LEASE_S seconds, by the database's clock, another takes over.
"""

import os
import socket
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, Float, cast, create_engine, func, inspect, select, text, update
from sqlalchemy.exc import DBAPIError

from cluster.database import schema
from cluster.database.lead import Lead, now
from cluster.database.tables import Lease, Queue
from cluster.errors import InputError, StoreUnavailableError

LEASE_S = 6.0
RENEW_S = 1.5
WAIT_S = 0.5  # between looks whether the lead is free
# within 10 s a connection to a host that is gone breaks, as libpq calls it
WHILE_A_HOST_IS_GONE = {
    "connect_timeout": 5, "keepalives_idle": 3, "keepalives_interval": 2, "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}  # fmt: skip
LOCK_TIMEOUT_S = 30
IDLE_TIMEOUT_S = 4  # a process that is paused within a transaction loses it, and with it the lock of the queue
SECRETS = ("password", "sslpassword", "passfile")  # parameters of a URL that are not shown
MAKING = 0x6475616C  # the advisory lock of those who make or upgrade a queue

_NOW = cast(func.extract("epoch", func.clock_timestamp()), Float)


class PostgresDatabase:
    """A database of a Postgres server.

    Attributes:
        name: its URL, without its password.
        file: None, since it is not a file.
        default_files: None, since nothing is beside it.
        where_led: where its dispatcher is looked for.
    """

    file: Path | None = None
    default_files: str | None = None
    where_led: str = ""

    def __init__(self, url: URL) -> None:
        """Connects to nothing yet."""
        self._url = url.set(drivername="postgresql+psycopg")
        self.name = url.difference_update_query(SECRETS).render_as_string(hide_password=True)

    def exists(self) -> bool:
        """Whether there is a queue in it."""
        with self._connection() as connection:
            return "queue" in inspect(connection).get_table_names()

    def create(self, files: str | None) -> None:
        """Make a queue unless another process was first."""
        import_module("alembic.command")  # before the transaction, which may not wait for it
        with self._connection() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MAKING})
            if "queue" not in inspect(connection).get_table_names():
                schema.make(connection, files)

    def upgrade(self, name: str) -> None:
        """Bring a queue up to this version, in one transaction.

        Args:
            name: what was given for it, for errors.

        Raises:
            InputError: of a version that is not known, or of an earlier one with a dispatcher.
        """
        with self._connection() as connection:
            if not schema.is_earlier(connection, name):
                return
        import_module("alembic.command")
        with self._connection() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MAKING})
            if schema.is_earlier(connection, name):  # or another process was first
                connection.execute(text("LOCK TABLE queue"))
                if connection.scalar(select(Lease.until >= _NOW)):
                    raise InputError(
                        f"--store {name}: of an earlier version, and its dispatcher runs; allowed: to stop that one; "
                        "what it has started goes on running"
                    )
                schema.migrate(connection)

    def connect(self) -> Engine:
        """An engine; its connections are tried before they are used, since the server may have been restarted."""
        given = self._url.query.get("options", "")
        settings = {
            "lock_timeout": LOCK_TIMEOUT_S * 1000, "idle_in_transaction_session_timeout": IDLE_TIMEOUT_S * 1000,
        }  # fmt: skip
        options = " ".join([str(given), *(f"-c {name}={value}" for name, value in settings.items())])
        defaults = {**WHILE_A_HOST_IS_GONE, "application_name": "dualview queue"}
        arguments = {name: value for name, value in defaults.items() if name not in self._url.query}
        return create_engine(self._url, pool_pre_ping=True, connect_args={**arguments, "options": options})

    @contextmanager
    def lead(self, report: Callable[[str], None], stopped: Callable[[float], bool]) -> Generator[Lead | None]:
        """Wait for the lead, and keep it.

        Args:
            report: is told whom it waits for.
            stopped: waits for so many seconds; whether to wait no longer, which yields None.
        """
        engine = self.connect()
        lease = _Leases(engine)
        try:
            lead = lease.wait(report, stopped)
            if lead is None:
                yield None
                return
            ended = threading.Event()
            renewing = threading.Thread(target=lease.renew, args=(lead, ended), name="lease", daemon=True)
            renewing.start()
            try:
                yield lead
            finally:
                ended.set()
                renewing.join(timeout=LEASE_S)
                lease.give_back(lead)
        finally:
            engine.dispose()

    def is_led(self) -> bool:
        """Whether a dispatcher leads."""
        try:
            with self._connection() as connection:
                return bool(connection.scalar(select(Lease.until >= _NOW)))
        except DBAPIError as error:
            raise StoreUnavailableError(f"the queue's database {self.name}: {one_line(error)}") from error

    @contextmanager
    def _connection(self) -> Generator[Connection]:
        engine = self.connect()
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()


class _Leases:
    """The row that says who leads."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._me = engine, f"{socket.gethostname()}, process {os.getpid()}"

    def wait(self, report: Callable[[str], None], stopped: Callable[[float], bool]) -> Lead | None:
        """The lead, once nobody has it; None if `stopped`."""
        reported = ""
        while True:
            problem = ""
            try:
                with self._engine.begin() as connection:
                    leader, free = connection.execute(select(Lease.leader, Lease.until < _NOW)).one()
                if free and (lead := self._take()):
                    return lead
                problem = f"{leader} dispatches; this one takes over if that ends"
            except DBAPIError as error:
                problem = f"the queue's database: {one_line(error)}; trying again"
            if problem != reported:
                reported = problem
                report(problem)
            if stopped(WAIT_S):
                return None

    def _take(self) -> Lead | None:
        """Take the lead between two transactions of whoever had it before."""
        sent, holder = now(), uuid.uuid4().hex
        taking = update(Lease).where(Lease.until < _NOW).values(holder=holder, leader=self._me, until=_NOW + LEASE_S)
        leading = update(Queue).values(epoch=Queue.epoch + 1, holder=holder).returning(Queue.epoch)
        with self._engine.begin() as connection:
            connection.execute(select(Queue.id).with_for_update())
            if not connection.execute(taking).rowcount:
                return None
            epoch = connection.execute(leading).scalar_one()
        return Lead(epoch, holder, sent + LEASE_S)

    def renew(self, lead: Lead, ended: threading.Event) -> None:
        """Renew the lease until `ended`, or until somebody else has it."""
        renewing = update(Lease).where(Lease.holder == lead.holder).values(until=_NOW + LEASE_S)
        while not ended.wait(RENEW_S):
            sent = now()
            try:
                with self._engine.begin() as connection:
                    renewed = connection.execute(renewing).rowcount
            except DBAPIError:  # the lead ends by itself if this goes on
                continue
            if not renewed:
                lead.until = 0.0
                return
            lead.until = sent + LEASE_S

    def give_back(self, lead: Lead) -> None:
        """Let another take over at once."""
        with suppress(DBAPIError), self._engine.begin() as connection:  # or it ends by itself
            connection.execute(update(Lease).where(Lease.holder == lead.holder).values(until=0.0))


def one_line(error: DBAPIError) -> str:
    """What a database says is wrong."""
    return " ".join(str(error.orig).split())
