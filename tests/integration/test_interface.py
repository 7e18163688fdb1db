"""On real Ray Train: every worker is told the interface of its node's address before its process group is made."""

import pytest

from tests.conftest import Cluster

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_a_node_known_by_its_loopback_address_talks_over_loopback(cluster: Cluster) -> None:
    output = cluster.run("tests.integration.interface")
    for rank in range(2):
        assert f"rank {rank}: ['lo', '=lo'] 3" in output
