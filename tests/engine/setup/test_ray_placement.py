# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What the front-end, a rank and the rendezvous do with the Ray nodes that ranks are placed on.

A list of nodes stands for the cluster here; tests/engine/serving/test_ray.py starts clusters.
"""

from types import SimpleNamespace

import pydantic
import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.ray.ray_env import get_env_vars_to_copy

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.setup import ray_cluster, ray_placement
from vllm_dwdp.engine.setup.ray_nodes import RayNode
from vllm_dwdp.engine.setup.settings import LOOPBACK, NODES_VARIABLE, Settings, endpoint
from vllm_dwdp.engine.worker.executor import DwdpExecutor
from vllm_dwdp.group.meet import secret

ADDRESS = "10.0.0.1"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """Restores the variables that `place_engines_by_ray` sets, and doesn't wait for resources."""
    for name in (ray_cluster.KEEP_GPUS, ray_cluster.COPIED_TO_ACTORS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(ray_cluster.current_platform, "ray_device_key", "")
    monkeypatch.setattr(ray_cluster, "SETTLE_S", 0)
    monkeypatch.setenv(secret.VARIABLE, "a secret of these tests")


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes with room for two engines each."""
    nodes = [RayNode(f"10.0.0.{n}", f"host{n}", {"CPU": 4.0}) for n in (1, 2)]
    monkeypatch.setattr(ray_placement, "live_nodes", lambda front_end: nodes)
    return nodes


def configured(demo_model, *, size_local=2, dwdp_size=2):
    return EngineArgs(
        model=str(demo_model),
        max_model_len=256,
        distributed_executor_backend="dwdp",
        additional_config={"dwdp": {"dwdp_size": dwdp_size}},
        data_parallel_size=4,
        data_parallel_size_local=size_local,
        data_parallel_address=ADDRESS,
        data_parallel_backend="ray",
    ).create_engine_config()


def test_ranks_learn_who_else_is_on_their_node(demo_model, cluster):
    settings = Settings.load(configured(demo_model))
    assert settings.is_one_command and settings.ranks_of_nodes == (2, 2)
    assert [settings.on_node(rank).rank for rank in range(4)] == [0, 1, 0, 1]
    assert settings.on_node(3) == (1, 2, range(2))


def test_without_ray_all_ranks_count_as_one_host():
    settings = Settings(4, 2, None, is_spread=False, command_ranks=(0, 4))
    assert settings.on_node(3) == (3, 4, range(4))


def test_offline_ranks_divide_and_meet_on_their_own_node(demo_model, monkeypatch):
    for name, value in (("RANK", 3), ("RANK_LOCAL", 1), ("SIZE", 4), ("MASTER_PORT", 1)):
        monkeypatch.setenv(f"VLLM_DP_{name}", str(value))
    monkeypatch.setenv(NODES_VARIABLE, "2,2")
    config = EngineArgs(
        model=str(demo_model),
        max_model_len=256,
        distributed_executor_backend="dwdp",
        additional_config={"dwdp": {"dwdp_size": 2}},
    )
    config = config.create_engine_config()
    settings = Settings.load(config)
    assert settings.on_node(3) == (1, 2, range(2))
    assert settings.store_ranks(3) == range(2, 4)
    assert endpoint(config, settings, one_host=True).host == LOOPBACK


def test_several_nodes_need_a_secret_and_one_node_does_not(demo_model, cluster, monkeypatch):
    monkeypatch.delenv(secret.VARIABLE)
    with pytest.raises(pydantic.ValidationError, match=r"store at 10\.0\.0\.1 .* has no secret"):
        configured(demo_model)
    cluster[:] = [RayNode(ADDRESS, "host1", {"CPU": 8.0})]
    assert Settings.load(configured(demo_model, size_local=4)).ranks_of_nodes == (4,)


def test_strategy_that_tears_ranks_apart_is_refused(demo_model, cluster, monkeypatch):
    monkeypatch.setenv("VLLM_RAY_DP_PACK_STRATEGY", "span")
    with pytest.raises(pydantic.ValidationError, match="VLLM_RAY_DP_PACK_STRATEGY=span, which"):
        configured(demo_model)


def test_group_on_two_nodes_is_refused_with_the_nodes(demo_model, cluster):
    with pytest.raises(pydantic.ValidationError, match=r"ranks 0 to 3 on 10.0.0.1 and 10.0.0.2"):
        configured(demo_model, dwdp_size=4)


def test_ranks_of_several_nodes_meet_at_the_data_parallel_address(demo_model, cluster):
    config = configured(demo_model)
    assert endpoint(config, Settings.load(config), one_host=True).host == ADDRESS
    one_node = Settings(4, 2, None, is_spread=False, ranks_of_nodes=(4,))
    assert endpoint(config, one_node, one_host=True).host == LOOPBACK


@pytest.mark.parametrize(("local_rank", "is_accepted"), [(1, True), (0, False)])
def test_rank_elsewhere_than_expected_ends(local_rank, is_accepted):
    executor = DwdpExecutor.__new__(DwdpExecutor)
    executor._job_rank = 3
    executor.parallel_config = SimpleNamespace(data_parallel_rank_local=local_rank)
    settings = Settings(4, 2, None, is_spread=False, ranks_of_nodes=(2, 2))
    if is_accepted:
        executor._check_node(settings)
        return
    with pytest.raises(ConfigError, match="dwdp rank 3 as number 1 of its Ray node, got number 0"):
        executor._check_node(settings)


def test_actors_see_all_gpus(monkeypatch):
    monkeypatch.setenv(ray_cluster.COPIED_TO_ACTORS, "MINE")
    ray_cluster.place_engines_by_ray()
    ray_cluster.place_engines_by_ray()
    assert {"MINE", ray_cluster.KEEP_GPUS} <= get_env_vars_to_copy()


def test_ranks_elsewhere_get_the_variables_that_hold_there(monkeypatch):
    given = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_HOST_IP": ADDRESS, "CUDA_VISIBLE_DEVICES": "0"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = ray_cluster.rank_variables()
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert not {"VLLM_HOST_IP", "CUDA_VISIBLE_DEVICES", secret.VARIABLE} & found.keys()


@pytest.mark.parametrize(
    ("given", "front_end", "expected"),
    [
        ("", ADDRESS, [1, 2, 3]),
        ("10.0.0.3", ADDRESS, [1, 3]),
        (" 10.0.0.1 , ", ADDRESS, [1]),
        ("10.0.0.3", None, [3]),
    ],
)
def test_only_nodes_that_vllm_may_use_count(monkeypatch, given, front_end, expected):
    monkeypatch.setenv("VLLM_RAY_DP_PLACEMENT_NODE_IPS", given)
    nodes = [RayNode(f"10.0.0.{n}", f"host{n}", {}) for n in (1, 2, 3)]
    allowed = [node for node in nodes if ray_cluster._is_allowed(node, front_end)]
    assert [node.address for node in allowed] == [f"10.0.0.{n}" for n in expected]
