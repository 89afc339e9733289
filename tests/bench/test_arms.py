# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The arms of `vllm-dwdp bench serve`: their servers, cores, GPUs and options."""

import os

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.load import Load
from vllm_dwdp.bench.recipe import CoreParts, GpuParts, ServerRecipe, arms_on, recipes
from vllm_dwdp.bench.serve_command import Common, arguments, environment, free_ports, printed

COMMON = Common("model", Load(), ("--dtype", "float32"), small_cache=True)


@pytest.fixture
def cores(monkeypatch):
    """A function that sets the cores that this process may use."""

    def allow(*cores):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))

    return allow


def test_cores_are_divided_into_equal_parts(cores):
    cores(2, 3, 4, 5, 6)
    parts = CoreParts(2)
    assert [parts.for_part(i)["VLLM_CPU_OMP_THREADS_BIND"] for i in range(2)] == ["2,3", "4,5"]
    assert parts.for_parts() == {"VLLM_CPU_OMP_THREADS_BIND": "2,3|4,5"}
    assert parts.for_one_engine() == {"VLLM_CPU_OMP_THREADS_BIND": "2,3,4,5"}


def test_fewer_cores_than_ranks_are_refused(cores):
    cores(0)
    with pytest.raises(BenchError, match=r"expected a core for each rank, 2 of them, got \[0\]"):
        CoreParts(2)


def test_gpus_are_those_that_this_process_sees(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    parts = GpuParts(2, num_gpus=3)
    assert parts.for_parts() == {"CUDA_VISIBLE_DEVICES": "4,6"}
    assert parts.for_part(1) == {"CUDA_VISIBLE_DEVICES": "6"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert GpuParts(2, num_gpus=3).for_parts() == {"CUDA_VISIBLE_DEVICES": "0,1"}
    with pytest.raises(BenchError, match="expected a GPU for each rank, 4 of them, got 3"):
        GpuParts(4, num_gpus=3)


def test_every_arm_uses_all_parts(cores):
    cores(0, 1)
    parts = CoreParts(2)
    found = recipes(arms_on(parts), parts)
    assert {name: len(servers) for name, servers in found.items()} == {
        "dwdp": 1,
        "tp": 1,
        "replicas": 2,
        "ep": 1,
        "one": 1,
    }
    for servers in found.values():
        used = ",".join(server.environment[CoreParts.VARIABLE] for server in servers)
        assert used.replace("|", ",") == "0,1"


def test_one_engine_on_everything_is_for_cores():
    assert arms_on(GpuParts(1, num_gpus=1)) == ["dwdp", "tp", "replicas", "ep"]


@pytest.mark.parametrize("name", ["dwdp", "tp", "replicas", "ep", "one"])
def test_vllm_knows_the_options_of_every_arm(name, cores):
    cores(0, 1)
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    for recipe in recipes([name], CoreParts(2))[name]:
        vllm, serve, model, *rest = arguments(COMMON, recipe, 8000)
        assert (os.path.basename(vllm), serve, model) == ("vllm", "serve", "model")
        at = rest.index("--host")
        assert rest[at : at + 4] == ["--host", "127.0.0.1", "--port", "8000"]
        del rest[at : at + 4]  # not the engine's
        assert parser.parse_args(rest).max_model_len == COMMON.load.longest + 64


def test_the_users_options_win():
    common = Common(
        "model", Load(), ("--max-model-len=99", "--enable-prefix-caching"), small_cache=False
    )
    assert common.all_options() == ["--max-model-len=99", "--enable-prefix-caching"]
    kept = Common("model", Load(), ("--gpu-memory-utilization", "0.1"), small_cache=True)
    assert "--kv-cache-memory-bytes" not in kept.all_options()
    assert "--kv-cache-memory-bytes" in COMMON.all_options()


def test_the_environment_has_no_cache_size_of_its_own(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "40")
    found = environment(ServerRecipe(environment={"A": "b"}))
    assert found["A"] == "b"
    assert "VLLM_CPU_KVCACHE_SPACE" not in found
    assert found["PATH"] == os.environ["PATH"]


def test_commands_are_printed_as_one_would_type_them():
    recipe = ServerRecipe(("--tensor-parallel-size", "2"), {"CORES": "0|1"})
    line = printed(COMMON, recipe, 8000)
    assert line.startswith("CORES='0|1' vllm serve model --served-model-name")
    assert line.endswith("--tensor-parallel-size 2")


def test_ports_differ():
    assert len(set(free_ports(8))) == 8
