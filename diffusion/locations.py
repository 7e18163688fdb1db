"""Where a registry may send somebody who asks it for a package, and what is fetched from there.

A registered version, and a run, name the place of their files, and whoever can write to the registry chooses it. A
client of the registry shows its credentials to web servers that it fetches from: those have to be the registry's own.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

STORES = ("", "file", "s3", "gs", "wasbs", "dbfs")
AZURE = (".dfs.core.windows.net", ".dfs.core.chinacloudapi.cn", ".dfs.core.usgovcloudapi.net")


def check_location(location: str, tracking_uri: str) -> None:
    """Refuse a place on another web server than the registry's, and one that has to be looked up once more.

    Args:
        location: where the registry says that files are.
        tracking_uri: the registry.

    Raises:
        ValueError: another server, a place that programs read differently, or a kind of place that is not known.
    """
    place, registry = urlsplit(location), urlsplit(tracking_uri)
    try:
        own = (place.hostname, place.port) == (registry.hostname, registry.port) and registry.scheme in (
            "http",
            "https",
        )
    except ValueError:  # a port that is none
        own = False
    odd = re.search(r"[\\\s@\x00-\x1f]", location) is not None
    cut = re.search(r"[#?\x00-\x1f]", location) is not None  # a file of the package is appended to it
    good = {
        "mlflow-artifacts": not odd and (own or not place.netloc),
        "http": not odd and own and registry.scheme == "http",
        "https": not odd and own and registry.scheme == "https",
        "abfss": str(place.hostname).endswith(AZURE),
        "": not place.netloc and not cut,
        "file": place.netloc in ("", "localhost") and not cut,
    }
    if not good.get(place.scheme, place.scheme in STORES):
        where = f"{place.scheme}://{place.hostname or 'no server'}"
        raise ValueError(f"its files are at {where}; allowed: the registry's own server, or a store of files")


class Listed(Protocol):
    """What a registry says of a file or folder."""

    @property
    def path(self) -> str:
        """Ends with its name."""
        ...

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder."""
        ...

    @property
    def file_size(self) -> int | None:
        """In bytes; None where that is not known."""
        ...


def files_of(listed: Iterable[Listed], most: Mapping[str, float]) -> set[str]:
    """Names of the files that may be fetched from a folder; a folder would be fetched with all that is in it.

    Args:
        listed: what the registry says is in the folder.
        most: bytes that each file may have which is wanted, by name.

    Raises:
        ValueError: a file that is wanted has more.
    """
    files = {PurePosixPath(each.path).name: each.file_size or 0 for each in listed if not each.is_dir}
    wanted = {name: size for name, size in files.items() if name in most}
    for name, size in wanted.items():
        if size > most[name]:
            raise ValueError(f"{name} has {size} bytes; allowed: at most {most[name]}")
    return set(wanted)
