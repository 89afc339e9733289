# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Rank 0 of two jobs that start at the same time with equal options, as vLLM configures them."""

import contextlib
import pickle
from pathlib import Path

import pytest
from vllm.engine.arg_utils import EngineArgs

from vllm_dwdp.bench.ports import free_port
from vllm_dwdp.engine.setup.settings import Settings
from vllm_dwdp.engine.worker.meeting import rendezvous
from vllm_dwdp.group.errors import RendezvousRefused

MODEL = str(Path(__file__).resolve().parents[3] / "examples" / "demo_model")


@contextlib.contextmanager
def opened_ranks_0(number, **options):
    """Open the rendezvous of rank 0 of so many jobs, with pickled copies of their configs."""
    configs = [
        EngineArgs(
            model=MODEL,
            distributed_executor_backend="dwdp",
            additional_config={"dwdp": {"timeout_s": 3}},
            **{"data_parallel_size": 2, "max_model_len": 256, **options},
        ).create_engine_config()
        for _ in range(number)
    ]
    with contextlib.ExitStack() as stack:
        for config in map(pickle.loads, map(pickle.dumps, configs)):
            place = rendezvous(config, Settings.load(config), one_host=True)
            stack.callback(place.close)
            place.open()
        yield


@pytest.fixture(autouse=True)
def first_port(monkeypatch):
    """Exports VLLM_PORT, as containers may, so that vLLM chooses the same ports for all jobs."""
    monkeypatch.setenv("VLLM_PORT", str(free_port(30)))


def test_jobs_of_one_command_each_meet_apart():
    with opened_ranks_0(2):
        pass


def test_second_job_of_several_commands_names_the_port_and_the_option():
    port = free_port(2)
    reason = f"can't host the rendezvous at 127.0.0.1:{port + 1}: .* dwdp.rendezvous"
    options = {"data_parallel_rank": 0, "data_parallel_rpc_port": port}
    with pytest.raises(RendezvousRefused, match=reason), opened_ranks_0(2, **options):
        pass
