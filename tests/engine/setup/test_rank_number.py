# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank with a front-end of its own shows its number in the job everywhere."""

import json
import os
import re
import urllib.request
from pathlib import Path

import msgspec
import pytest
import rank_fields
import vllm
import zmq
from contract.data_parallel_uses import Use, unexplained
from forms import EAGER, server_per_rank
from vllm import SamplingParams
from vllm.distributed.kv_events import KVEventBatch
from vllm.engine.arg_utils import EngineArgs

from vllm_dwdp import LLM
from vllm_dwdp.bench.ports import free_port
from vllm_dwdp.engine.setup.independence import restore_rank
from vllm_dwdp.engine.setup.settings import Settings

pytestmark = pytest.mark.whole

PROMPT = "It is a truth universally acknowledged"
RANDOM = SamplingParams(temperature=1, max_tokens=24, ignore_eos=True)
SEEDED = SamplingParams(temperature=1, max_tokens=24, ignore_eos=True, seed=7)
STOCK_FIELDS = {"rank": 0, "size": 1, "size_local": 1, "hybrid_lb": False}
"""Fields of an engine in a stock job of a dense model, where only the index has its number."""


@pytest.fixture(scope="module")
def kv_events_port():
    """The KV event port of rank 0; rank 1 has the next one."""
    return free_port(2)


@pytest.fixture(scope="module")
def servers(demo_model, tmp_path_factory, kv_events_port):
    """Two ranks, each with a server of its own and the same options."""
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "topic": "kv"}
    events["endpoint"] = f"tcp://*:{kv_events_port}"
    options = ["--kv-events-config", json.dumps(events)]
    options += ["--worker-extension-cls", rank_fields.EXTENSION]
    environment = {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    logs = tmp_path_factory.mktemp("servers")
    with server_per_rank(demo_model, logs, *EAGER, *options, environment=environment) as made:
        yield made


def test_rank_publishes_kv_events_on_its_own_port_under_its_own_number(servers, kv_events_port):
    for rank, server in enumerate(servers):
        with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
            subscriber.connect(f"tcp://127.0.0.1:{kv_events_port + rank}")
            subscriber.subscribe("kv")
            for attempt in range(20):  # it takes a moment until a subscription works
                server.complete(f"{attempt} " + PROMPT * 24, 1)
                if subscriber.poll(500):
                    break
            else:
                pytest.fail("no event came within 20 requests of several blocks each")
            batch = msgspec.msgpack.decode(subscriber.recv_multipart()[-1], type=KVEventBatch)
        assert batch.data_parallel_rank == rank


def test_metrics_and_log_name_the_rank(servers):
    for rank, server in enumerate(servers):
        server.complete(PROMPT, 8)
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            labels = re.findall(r'^vllm:\w+\{.*engine="(\d+)"', answer.read().decode(), re.M)
        assert set(labels) == {str(rank)}
        server.wait_for_log(f"Engine 00{rank}: Avg")
        assert set(re.findall(r"Engine (\d{3})", server.text())) == {f"00{rank}"}


def test_worker_of_a_server_of_its_own_has_the_fields_of_a_stock_rank(servers):
    for rank, server in enumerate(servers):
        request = urllib.request.Request(
            f"{server.url}/collective_rpc",
            json.dumps({"method": "rank_fields"}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            (fields,) = json.load(answer)["results"]
        own = {"index": rank, "rank_local": 0, "external_lb": True}
        assert fields == {**STOCK_FIELDS, **own}


@pytest.fixture(scope="module")
def two_jobs(demo_model):
    """Two offline jobs of the same seed, each of two ranks."""
    options = {"data_parallel_size": 2, "max_in_flight": 1, "enforce_eager": True}
    with (
        LLM(str(demo_model), max_model_len=256, **options) as one,
        LLM(str(demo_model), max_model_len=256, **options) as other,
    ):
        yield one, other


def texts(llm, params):
    return [o.outputs[0].text for o in llm.generate([PROMPT] * 2, params, use_tqdm=False)]


def test_ranks_draw_different_samples_and_a_job_can_be_repeated(two_jobs):
    """Prompts go to the first rank that is free, so both jobs spread them in the same way."""
    one, other = ([texts(llm, RANDOM) for _ in range(3)] for llm in two_jobs)
    assert all(first != second for first, second in one)
    assert one == other


def test_seed_of_a_request_gives_the_same_text_on_every_rank(two_jobs):
    first, second = texts(two_jobs[0], SEEDED)
    assert first == second


def configured(monkeypatch, *, environment=(), **options):
    for name, value in dict(environment).items():
        monkeypatch.setenv(name, value)
    model = str(Path(__file__).resolve().parents[3] / "examples" / "demo_model")
    return EngineArgs(
        model=model, distributed_executor_backend="dwdp", max_model_len=256, **options
    ).create_engine_config()


OFFLINE = {
    **{"VLLM_DP_RANK": "3", "VLLM_DP_RANK_LOCAL": "1", "VLLM_DP_SIZE": "4"},
    "VLLM_DP_MASTER_PORT": "7",
}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"data_parallel_size": 4, "data_parallel_rank": 3},
            {"index": 3, "rank_local": 0, "external_lb": True},
        ),
        ({"environment": OFFLINE}, {"index": 3, "rank_local": 1, "external_lb": False}),
        (
            {"data_parallel_size": 4, "data_parallel_rank": 3, "_api_process_count": 2},
            {"index": 3, "rank_local": 0, "external_lb": True},
        ),
    ],
    ids=["server", "offline", "several API servers"],
)
def test_engine_of_a_rank_with_a_front_end_has_the_fields_of_a_stock_rank(
    monkeypatch, options, expected
):
    """`restore_rank` gives the same fields when vLLM calls it twice, as in an engine process."""
    config = configured(monkeypatch, kv_transfer_config=CONNECTOR, **options)
    config.parallel_config.reconfigure_for_independent_dp_rank()  # as vLLM's EngineCoreProc does
    for _ in range(2):
        restore_rank(config, Settings.load(config))
    parallel = config.parallel_config
    fields = {name: getattr(parallel, f"data_parallel_{name}") for name in rank_fields.FIELDS}
    assert fields == {**STOCK_FIELDS, **expected}
    assert config.kv_transfer_config.engine_id == "me_dp3"


CONNECTOR = {
    "kv_connector": "ExampleConnector",
    "kv_role": "kv_both",
    "engine_id": "me",
    "kv_connector_extra_config": {"shared_storage_path": os.devnull},
}


@pytest.mark.parametrize("process", [(1, 0), (2, -1), (2, 1), (1, -1)])
def test_front_end_numbers_its_engine_as_it_launches_it(monkeypatch, process):
    """vLLM launches an engine by its rank and addresses it by its index, so both must be equal.

    process: the number of API servers, and the number of this process among them.
    """
    count, process_idx = process
    config = configured(
        monkeypatch,
        data_parallel_size=4,
        data_parallel_rank=3,
        _api_process_count=count,
        _api_process_rank=process_idx,
    )
    parallel = config.parallel_config
    assert parallel.data_parallel_index == parallel.data_parallel_rank
    assert parallel.data_parallel_index == (3 if process == (1, 0) else 0)


def test_page_explains_every_use_of_the_fields_in_the_installed_vllm():
    assert unexplained(Path(vllm.__file__).parent) == []


def test_use_that_the_page_does_not_explain_is_found(tmp_path):
    (tmp_path / "new.py").write_text(
        "port = base + config.parallel_config.data_parallel_index\n"
        "name = getattr(config, 'data_parallel_rank', 0)\n"
        "starts = config.local_engines_only\n"
    )
    found = ["external_lb", "hybrid_lb", "index", "rank"]
    assert unexplained(tmp_path) == [Use("new.py", field) for field in found]
