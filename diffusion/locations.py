"""Where a registry may send somebody who asks it for a package.

A registered version names the place of its files, and whoever can write to the registry chooses it. A client of the
registry shows its credentials to web servers that it fetches from, so those have to be the registry's own.
"""

from urllib.parse import urlsplit

STORES = ("", "file", "s3", "gs", "abfss", "wasbs", "dbfs", "hdfs", "viewfs", "runs", "models")


def check_location(location: str, tracking_uri: str) -> None:
    """Refuse a place on another web server than the registry's.

    Args:
        location: where the registry says that files are.
        tracking_uri: the registry.

    Raises:
        ValueError: another server, or a kind of place that is not known.
    """
    place, registry = urlsplit(location), urlsplit(tracking_uri)
    if place.scheme in STORES:
        return
    own = registry.scheme in ("http", "https") and place.hostname == registry.hostname and place.port == registry.port
    if place.scheme == "mlflow-artifacts" and (own or not place.netloc):
        return
    if place.scheme in ("http", "https") and own and place.scheme == registry.scheme:
        return
    host = place.hostname or "no server"
    raise ValueError(
        f"its files are at {place.scheme}://{host}; allowed: the registry's own server, or a store of files"
    )
