"""`python -m infra.ray_head start --head …`: `ray`, which listens at the loopback address that it is given.

Ray takes an address of a network for it otherwise: the sockets of its servers, and of every worker, are then open to
all who reach this machine.
"""

import sys
from importlib import import_module
from typing import Any


def main() -> None:
    """Run Ray's own command line."""
    services: Any = import_module("ray._private.services")
    services.resolve_ip_for_localhost = lambda host: host
    sys.argv[0] = "ray"
    import_module("ray.scripts.scripts").main()


if __name__ == "__main__":
    main()
