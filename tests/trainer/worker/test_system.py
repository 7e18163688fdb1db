"""What nodes are busy with: sampled here, and named by node where there are several."""

import math

import torch

from trainer.worker.system import SIZE, NodeSampler, named


def test_a_sample_is_of_this_machine():
    cpu, memory, megabytes, gpu, gpu_megabytes = NodeSampler(torch.device("cpu")).sample().tolist()
    assert 0 <= cpu <= 100
    assert 0 < memory <= 100
    assert megabytes > 10
    assert math.isnan(gpu)
    assert math.isnan(gpu_megabytes)


def test_one_node_is_not_named_and_its_ranks_are_one():
    values = [50.0, 10.0, 100.0, math.nan, math.nan]
    assert named(["a", "a"], values * 2) == {
        "system/cpu_utilization_percentage": 50.0,
        "system/system_memory_usage_percentage": 10.0,
        "system/system_memory_usage_megabytes": 100.0,
    }


def test_several_nodes_are_named_and_gpus_are_numbered_on_each():
    ranks = [[float(10 * rank + place) for place in range(SIZE)] for rank in range(3)]
    metrics = named(["a", "b", "a"], [value for rank in ranks for value in rank])
    assert metrics["system/a/cpu_utilization_percentage"] == 0.0
    assert metrics["system/b/cpu_utilization_percentage"] == 10.0
    assert metrics["system/a/gpu_0_utilization_percentage"] == 3.0
    assert metrics["system/a/gpu_1_memory_usage_megabytes"] == 24.0
    assert metrics["system/b/gpu_0_memory_usage_megabytes"] == 14.0
    assert len(metrics) == 2 * 3 + 3 * 2
