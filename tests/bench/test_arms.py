# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The arms of `vllm-dwdp bench serve`: their servers, cores, GPUs and options."""

import os

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_dwdp.bench import parts as parts_module
from vllm_dwdp.bench.arms import ServerRecipe, arms_on, recipes
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.load import Load
from vllm_dwdp.bench.parts import CoreParts, GpuParts
from vllm_dwdp.bench.serve_command import ServeOptions, arguments, environment, printed

BIND = "VLLM_CPU_OMP_THREADS_BIND"
OPTIONS = ServeOptions("model", Load(), ("--dtype", "float32"), small_cache=True)


@pytest.fixture
def cores(monkeypatch, tmp_path):
    """A function that sets the cores that this process may use."""

    def allow(*cores):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))
        monkeypatch.setattr(parts_module, "memory_nodes", lambda: [set(cores)])
        monkeypatch.setattr(parts_module, "TOPOLOGY", tmp_path)

    return allow


def test_cores_are_divided_into_equal_parts(cores):
    cores(2, 3, 4, 5, 6)
    parts = CoreParts(2)
    assert [parts.for_part(i)["VLLM_CPU_OMP_THREADS_BIND"] for i in range(2)] == ["2,3", "4,5"]
    assert parts.for_parts() == {"VLLM_CPU_OMP_THREADS_BIND": "2,3|4,5"}
    assert parts.for_one_engine() == {"VLLM_CPU_OMP_THREADS_BIND": "2,3,4,5"}


def test_threads_of_a_core_stay_together(cores, tmp_path):
    cores(0, 1, 2, 3)
    for thread, core in enumerate((0, 1, 0, 1)):
        topology = tmp_path / f"cpu{thread}" / "topology"
        topology.mkdir(parents=True)
        (topology / "core_id").write_text(f"{core}\n")
        (topology / "physical_package_id").write_text("0\n")
    assert CoreParts(2).for_parts() == {BIND: "0,2|1,3"}


def test_fewer_cores_than_ranks_are_refused(cores):
    cores(0)
    with pytest.raises(BenchError, match="expected a core for each rank, 2 of them, got 1"):
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
        used = ",".join(server.environment[BIND] for server in servers)
        assert used.replace("|", ",") == "0,1"


def test_one_engine_on_everything_is_for_cores():
    assert arms_on(GpuParts(1, num_gpus=1)) == ["dwdp", "tp", "replicas", "ep"]


@pytest.mark.parametrize("name", ["dwdp", "tp", "replicas", "ep", "one"])
def test_vllm_knows_the_options_of_every_arm(name, cores):
    cores(0, 1)
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    for recipe in recipes([name], CoreParts(2))[name]:
        vllm, serve, model, *rest = arguments(OPTIONS, recipe, 8000)
        assert (os.path.basename(vllm), serve, model) == ("vllm", "serve", "model")
        at = rest.index("--host")
        assert rest[at : at + 4] == ["--host", "127.0.0.1", "--port", "8000"]
        del rest[at : at + 4]  # not the engine's
        assert parser.parse_args(rest).max_model_len == OPTIONS.load.longest + 64


def test_the_users_options_win():
    given = ("--max_model_len=99", "--enable-prefix-caching", "--kv_cache_memory_bytes", "1")
    options = ServeOptions("model", Load(), given, small_cache=True)
    assert options.all() == list(given)
    assert "--kv-cache-memory-bytes" in OPTIONS.all()
    assert "--kv-cache-memory-bytes" not in ServeOptions("m", Load(), (), small_cache=False).all()


@pytest.mark.parametrize("option", ["--port=1", "-tp", "--data_parallel_size", "--api-key"])
def test_options_that_bench_sets_are_refused(option):
    with pytest.raises(BenchError, match=r"expected no -.* behind '--': bench sets it"):
        ServeOptions("model", Load(), ("--dtype", "half", option), small_cache=True)


def test_clients_get_the_options_that_they_need_too():
    given = ("--trust-remote-code", "--dtype", "half", "--tokenizer", "t", "--tokenizer-mode=slow")
    options = ServeOptions("model", Load(), given, small_cache=True)
    assert options.of_clients() == [
        "--trust-remote-code",
        "--tokenizer",
        "t",
        "--tokenizer-mode=slow",
    ]


def test_the_environment_hides_what_would_change_an_arm(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "40")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    found = environment(ServerRecipe(environment={"A": "b"}))
    assert found["A"] == "b"
    assert not {"VLLM_CPU_KVCACHE_SPACE", "VLLM_API_KEY"} & set(found)
    assert found["PATH"] == os.environ["PATH"]


def test_commands_are_printed_as_one_would_type_them():
    recipe = ServerRecipe(("--tensor-parallel-size", "2"), {"CORES": "0|1"})
    line = printed(OPTIONS, recipe, 8000)
    assert line.startswith("CORES='0|1' vllm serve model --served-model-name")
    assert line.endswith("--tensor-parallel-size 2")
