# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Prefill ranks and stock decode servers for tests, and requests that go through both."""

import contextlib
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from forms import DWDP, EAGER, assert_all_end, at_port, post, supervisor
from support.server import Server

from vllm_dwdp.bench.ports import free_port

PREFILL_FIRST = MappingProxyType({"do_remote_decode": True, "do_remote_prefill": False})
"""What a router sends as `kv_transfer_params` to have a rank keep a prompt's KV cache."""
NUM_RANKS = {"external": 2, "internal": 2, "supervisor": 2, "hybrid": 4}
"""By form. With "hybrid" two servers have two ranks each."""
NUM_DECODE = 2
MAX_TOKENS = 16


class Rank(NamedTuple):
    """A prefill rank: the server that answers for it, and headers by which the server knows it."""

    server: Server
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Deployment:
    """Servers that are ready. Rank r is to use the ports `side_channel` + r and `kv_events` + r."""

    form: str
    connector: str
    ranks: list[Rank]
    decode: list[Server]
    side_channel: int
    kv_events: int


@contextlib.contextmanager
def deployment(model, logs, form, connector):
    """Start prefill ranks in this form and stock decode servers; all are ready to answer."""
    num_ranks = NUM_RANKS[form]
    side_channel, kv_events = free_port(num_ranks + NUM_DECODE), free_port(num_ranks)
    made = []

    def start(name, channel, *options):
        environment = {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(channel), "VLLM_SERVER_DEV_MODE": "1"}
        made.append(Server(model, *options, log=logs / name, environment=environment))
        return made[-1]

    try:
        common = (*prefill_options(connector, logs), *kv_event_options(kv_events))
        ranks = start_ranks(form, lambda name, *own: start(name, side_channel, *common, *own))
        decode = [
            start(f"decode{i}", side_channel + num_ranks + i, *decode_options(connector))
            for i in range(NUM_DECODE)
        ]
        for server in [rank.server for rank in ranks] + decode:
            server.wait_until_ready()
        yield Deployment(form, connector, ranks, decode, side_channel, kv_events)
    finally:
        assert_all_end([server for server in made if server.process.poll() is None])


def start_ranks(form, start):
    """Start the servers of all prefill ranks in a form of NUM_RANKS.

    start: called with a log's name and options.
    """
    ranks = range(NUM_RANKS[form])
    job = (*DWDP, "--data-parallel-size", str(len(ranks)))
    if form == "supervisor":
        port = free_port(len(ranks) + 1)
        server = start("prefill", *job, *supervisor(port))
        return [Rank(at_port(server, port + rank), {}) for rank in ranks]
    job += ("--data-parallel-rpc-port", str(free_port(2)))
    if form == "internal":
        server = start("prefill", *job)
        return [Rank(server, rank_header(rank)) for rank in ranks]
    if form == "hybrid":
        job += ("--data-parallel-hybrid-lb", "--data-parallel-size-local", "2")
        servers = [
            start(f"prefill{first}", *job, "--data-parallel-start-rank", str(first))
            for first in ranks[::2]
        ]
        return [Rank(servers[rank // 2], rank_header(rank % 2)) for rank in ranks]
    own = [("--data-parallel-rank", str(rank)) for rank in ranks]
    return [Rank(start(f"prefill{rank}", *job, *own[rank]), {}) for rank in ranks]


def rank_header(number):
    """Headers by which a front-end with several ranks takes this one of its own."""
    return {"X-data-parallel-rank": str(number)}


def prefill_options(connector, folder):
    transfer = nixl(connector, "kv_producer")
    if connector == "MultiConnector":
        store = {"shared_storage_path": str(folder / "kv")}
        example = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
        example["kv_connector_extra_config"] = store
        both = {"connectors": [nixl("NixlConnector", "kv_producer"), example]}
        transfer |= {"kv_connector_extra_config": both}
    return ("--kv-transfer-config", json.dumps(transfer))


def decode_options(connector):
    """Options of a stock server. It keeps no prefixes, so that it computes a prompt again.

    ExampleConnector switches vLLM's hybrid KV cache manager off, and NIXL connects only servers
    that have it both or neither.
    """
    is_multi = connector == "MultiConnector"
    transfer = nixl("NixlConnector" if is_multi else connector, "kv_consumer")
    own = ("--disable-hybrid-kv-cache-manager",) if is_multi else ()
    own += ("--kv-transfer-config", json.dumps(transfer), "--no-enable-prefix-caching")
    return (*EAGER, *own)


def nixl(connector, role):
    return {"kv_connector": connector, "kv_role": role, "kv_buffer_device": "cpu"}


def kv_event_options(port):
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "topic": "kv"}
    return ("--kv-events-config", json.dumps(events | {"endpoint": f"tcp://*:{port}"}))


def ask(server, prompt, headers=MappingProxyType({}), **options):
    """A completion of the prompt, as the server's answer says it."""
    body = {"prompt": prompt, "temperature": 0, "ignore_eos": True, **options}
    with post(server, "/v1/completions", body, headers) as answer:
        return json.load(answer)


def prefill(rank, prompt, request_id):
    """Have a rank compute the prompt; returns the parameters by which a server gets at its KV."""
    headers = {**rank.headers, "X-Request-Id": request_id}
    answer = ask(rank.server, prompt, headers, max_tokens=1, kv_transfer_params={**PREFILL_FIRST})
    return answer["kv_transfer_params"]


def decode(server, prompt, params, request_id):
    """The text of a server that gets the prompt's KV cache by these parameters."""
    headers = {"X-Request-Id": request_id}
    answer = ask(server, prompt, headers, max_tokens=MAX_TOKENS, kv_transfer_params=params)
    return answer["choices"][0]["text"]


def through(rank, server, prompt):
    """The text that a client of a router gets: prefill on the rank, then decode on the server."""
    request_id = uuid.uuid4().hex  # with NixlPushConnector, ranks know a request again by it
    return decode(server, prompt, prefill(rank, prompt, request_id), request_id)


def alone(server, prompt):
    """The text of a server that computes the prompt itself."""
    return ask(server, prompt, max_tokens=MAX_TOKENS)["choices"][0]["text"]


def tokens_from_elsewhere(server):
    """The number of prompt tokens that came through a connector, by the server's metrics."""
    name = r"^vllm:external_prefix_cache_hits_total\{.*\} (\S+)$"
    return sum(map(float, re.findall(name, server.call("GET", "/metrics")[1], re.M)))


@contextlib.contextmanager
def router(ranks, servers, log, port):
    """Run vLLM's router before ranks with front-ends of their own; yields it as a Server."""
    command = [sys.executable, "-I", "-m", "vllm_router.launch_router", "--vllm-pd-disaggregation"]
    command += [part for rank in ranks for part in ("--prefill", rank.server.url)]
    command += [part for server in servers for part in ("--decode", server.url)]
    command += ["--policy", "round_robin", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-port", str(port + 1)]
    made = Server.__new__(Server)  # only its process and its port differ from those of a server
    made.log, made.port, made._host = log, port, None
    with log.open("wb") as out:
        made.process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        made.wait_until_ready()
        yield made
    finally:
        made.process.kill()
        made.process.wait()
