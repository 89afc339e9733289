# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vllm_dwdp.LLM with ranks on Ray nodes: on one node, and a group on each of two nodes.

A rank takes two logical CPUs of its node.
"""

import contextlib
import multiprocessing
import subprocess
import sys
import threading
import time

import psutil
import pytest
from support import leftovers
from support.ray_cluster import first_node, two_nodes
from vllm import SamplingParams

from vllm_dwdp import LLM

ray = pytest.importorskip("ray", reason="pip install ray")

pytestmark = [pytest.mark.ray, pytest.mark.whole]
RANK = "dwdp-rank-"
START_S = 300
ENDS_S = 30
IN_FLIGHT_S = 0.5
OPTIONS = {"max_model_len": 512, "enforce_eager": True, "data_parallel_backend": "ray"}
TWO_GROUPS = {"data_parallel_size": 4, "additional_config": {"dwdp": {"dwdp_size": 2}}}
GREEDY = SamplingParams(temperature=0, max_tokens=16, logprobs=1)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


SCRIPT = """
import time
from vllm_dwdp import LLM

if __name__ == "__main__":
    llm = LLM({model!r}, **{options})
    print("READY", flush=True)
    {ending}
"""


def on_two_hosts(test):
    """Mark a test that needs a second host with a network."""
    return pytest.mark.slow(pytest.mark.hosts(pytest.mark.root(test)))


@pytest.fixture(autouse=True)
def disconnected():
    """Leaves no connection to a cluster that the next test doesn't have."""
    yield
    ray.shutdown()


def assert_like_stock(llm, stock):
    expected = stock["outputs"]
    outputs = llm.generate([one["prompt"] for one in expected], GREEDY, use_tqdm=False)
    found = [list(output.outputs[0].token_ids) for output in outputs]
    assert found == [one["tokens"] for one in expected]


def of_ranks():
    """The processes of ranks, their engines and their workers that these tests started."""
    return [process for process in leftovers.processes() if _is_of_rank(process)]


def _is_of_rank(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return "VLLM::" in process.name() or "spawn_main" in " ".join(process.cmdline())
    return False


def assert_no_process_is_left():
    deadline = time.monotonic() + ENDS_S
    while left := of_ranks():
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    assert leftovers.memory_files() == set()


def test_one_node_answers_like_stock_and_leaves_nothing(demo_model, stock_eager):
    with first_node(num_cpus=4):
        with LLM(str(demo_model), data_parallel_size=2, max_in_flight=1, **OPTIONS) as llm:
            assert multiprocessing.active_children() == []
            assert_like_stock(llm, stock_eager)
            stats = llm.dwdp_stats()
            assert [one["rank"] for one in stats] == [0, 1]
            assert all(sum(one["forwards"]) > 0 for one in stats)
            owned = [one["experts_owned"] for one in llm.collective_rpc("dwdp_stats")]
            assert owned == [[0, 8], [8, 16]]
            assert len(of_ranks()) >= 4
        assert_no_process_is_left()


@contextlib.contextmanager
def program(folder, model, ending):
    """A program that builds an LLM, and then runs the line `ending`; and its log."""
    script, log = folder / "script.py", folder / "log"
    script.write_text(SCRIPT.format(model=str(model), options=OPTIONS, ending=ending))
    command = [sys.executable, script]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        yield process, log


def test_ranks_end_with_a_program_that_is_killed(demo_model, tmp_path):
    with first_node(num_cpus=2):
        with program(tmp_path, demo_model, "time.sleep(600)") as (process, log):
            while "READY" not in log.read_text():
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.2)
            assert of_ranks()
            process.kill()
        assert_no_process_is_left()


def test_ranks_end_with_the_last_line_of_a_program(demo_model, tmp_path):
    with first_node(num_cpus=2):
        with program(tmp_path, demo_model, "pass") as (process, log):
            assert process.wait(START_S) == 0
        assert "READY" in log.read_text() and "Traceback" not in log.read_text()
        assert_no_process_is_left()


def test_placement_without_room_is_refused_with_the_nodes(demo_model):
    with (
        first_node(num_cpus=3),
        pytest.raises(ValueError, match=r"room for 2 ranks of 2 CPU each.* \(.*\): 3 CPU; start"),
    ):
        LLM(str(demo_model), data_parallel_size=2, **OPTIONS)


def test_without_a_cluster_it_says_how_to_start_one(demo_model, monkeypatch):
    def find_none(**options):
        raise ConnectionError(f"no Ray at {options['address']}")

    monkeypatch.setattr(ray, "init", find_none)
    with pytest.raises(ConnectionError, match="ray start --head"):
        LLM(str(demo_model), data_parallel_size=2, **OPTIONS)


@on_two_hosts
def test_ranks_of_the_other_node_go_on_when_one_is_killed(demo_model, stock_eager):
    with (
        two_nodes(num_cpus=4) as nodes,
        LLM(str(demo_model), max_in_flight=4, **TWO_GROUPS, **OPTIONS) as llm,
    ):
        assert [one["rank"] for one in llm.dwdp_stats()] == [0, 1, 2, 3]
        assert [one["group"] for one in llm.dwdp_stats()] == [0, 0, 1, 1]
        assert_like_stock(llm, stock_eager)
        timer = threading.Timer(IN_FLIGHT_S, nodes.second_host.kill)
        timer.start()
        outputs = llm.generate(["Emma was"] * 64, LONG, use_tqdm=False)
        assert not timer.is_alive(), "the work ended before the kill"
        assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
        assert [one["rank"] for one in llm.dwdp_stats()] == [0, 1]
        assert_like_stock(llm, stock_eager)
    assert_no_process_is_left()
