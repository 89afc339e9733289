# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The server goes on answering after any call of vLLM's development endpoints."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from forms import server_in_dev_mode

pytestmark = pytest.mark.whole

OPTIONS = ("--max-model-len", "512", "--distributed-executor-backend", "dwdp", "--enforce-eager")
SHARED = "but the dwdp group shares them read-only"
RPC_REFUSED = (
    "load_model",
    "reload_weights",
    "reset_weights",
    "sleep",
    "wake_up",
    "checkpoint_prepare",
    "update_weights",
    "elastic_ep_execute",
    "save_sharded_state",
    "save_tensorized_model",
)
REFUSED = {
    "sleep": ("/sleep", None),
    "sleep deeply": ("/sleep?level=2", None),
    "sleep when idle": ("/sleep?mode=wait", None),
    "sleep at once": ("/sleep?mode=keep", None),
    "KV cache": ("/release_kv_cache_memory", None),
    "transfer": ("/init_weight_transfer_engine", {"init_info": {}}),
    "start": ("/start_weight_update", None),
    "start of a draft's": ("/start_draft_weight_update", None),
    "update": ("/update_weights", {"update_info": {}}),
    "finish": ("/finish_weight_update", {"weight_version": "2"}),
    "zeros": ("/weight_checker", {"action": "reset"}),
    **{f"rpc {name}": ("/collective_rpc", {"method": name}) for name in RPC_REFUSED},
}
PAUSES = (
    *((f"/pause?mode={mode}", "/resume") for mode in ("abort", "wait", "keep")),
    ("/pause", "/wake_up"),
    ("/sleep?level=0", "/wake_up?tags=scheduling"),
    ("/sleep?level=0&mode=wait", "/resume"),
)
OTHERS = (
    (200, "GET", "/is_sleeping", None),
    (200, "GET", "/is_paused", None),
    (200, "GET", "/weight_info", None),
    (200, "GET", "/get_world_size", None),
    (200, "GET", "/server_info", None),
    (200, "GET", "/server_info?config_format=json", None),
    (200, "POST", "/wake_up", None),
    (200, "POST", "/resume", None),
    (200, "POST", "/abort_requests", {}),
    (200, "POST", "/reset_prefix_cache?reset_running_requests=true", None),
    (200, "POST", "/reset_mm_cache", None),
    (200, "POST", "/reset_encoder_cache", None),
    (200, "POST", "/update_weight_version", {"new_version": "2"}),
    (500, "POST", "/weight_checker", {"action": "checksum"}),
    (200, "POST", "/shutdown_weight_transfer_engine", None),
    (500, "POST", "/scale_elastic_ep", {"new_data_parallel_size": 3}),
    (200, "POST", "/collective_rpc", {"method": "dwdp_stats"}),
    (500, "POST", "/collective_rpc", {"method": "no_such_method"}),
    (500, "POST", "/collective_rpc", {"method": "check_health", "args": [1, 2, 3]}),
)


@pytest.fixture(scope="module")
def server(demo_model, tmp_path_factory):
    options = ("--data-parallel-size", "2", *OPTIONS)
    with server_in_dev_mode(demo_model, tmp_path_factory.mktemp("server"), *options) as made:
        yield made


def assert_all_ranks_answer(server):
    for answer in [server.complete("It is a truth", 4) for _ in range(2)]:
        assert answer


def num_completed_tokens(server, max_tokens):
    body = {"model": "demo", "prompt": "It is a truth", "temperature": 0, "ignore_eos": True}
    _, answer = server.call("POST", "/v1/completions", {**body, "max_tokens": max_tokens})
    return json.loads(answer)["usage"]["completion_tokens"]


def is_paused(server):
    return "true" in server.call("GET", "/is_sleeping")[1]


def test_refused_call_names_the_reason_and_pauses_nothing(server):
    for what, (path, body) in REFUSED.items():
        status, text = server.call("POST", path, body)
        assert (status, SHARED in text) == (500, True), (what, status, text)
        assert not is_paused(server), what
        assert_all_ranks_answer(server)


def test_requests_in_flight_outlive_a_refused_call(server):
    with ThreadPoolExecutor(max_workers=4) as pool:
        counts = [pool.submit(num_completed_tokens, server, 400) for _ in range(4)]
        while not any(count.done() for count in counts):
            assert server.call("POST", "/sleep")[0] == 500
    assert [count.result() for count in counts] == [400] * 4


def test_pauses_are_vllms_and_end_by_its_calls(server):
    for pause, resume in PAUSES:
        assert server.call("POST", pause)[0] == 200, pause
        assert is_paused(server), pause
        assert server.call("POST", "/release_kv_cache_memory")[0] == 500
        assert server.call("POST", "/sleep")[0] == 500
        assert server.call("POST", resume)[0] == 200, resume
        assert not is_paused(server), resume
        assert_all_ranks_answer(server)


def test_other_calls_leave_the_server_answering(server):
    for expected, method, path, body in OTHERS:
        status, text = server.call(method, path, body)
        assert status == expected, (path, status, text)
        assert not is_paused(server), path
        assert_all_ranks_answer(server)
