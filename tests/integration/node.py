"""`python -m tests.integration.node ADDRESS CPUS`: one more Ray node on loopback, until it is ended.

`ray start` takes no second node on 127.0.0.1, and turns that address into another one where it is made to.
"""

import signal
import sys
import threading

from ray._private.node import Node
from ray._private.parameter import RayParams


def main() -> None:
    """Join the cluster at ADDRESS with CPUS."""
    parameters = RayParams(
        gcs_address=sys.argv[1],
        node_ip_address="127.0.0.1",
        num_cpus=int(sys.argv[2]),
        num_gpus=0,
        dashboard_agent_listen_port=0,
    )
    Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    threading.Event().wait()


if __name__ == "__main__":
    main()
