# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The descriptor server survives peers that misbehave, and refuses other users."""

import contextlib
import ctypes
import logging
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_dwdp.group.errors import ExchangeRefused
from vllm_dwdp.group.handover.descriptor import wire
from vllm_dwdp.group.handover.descriptor.client import DescriptorClient
from vllm_dwdp.group.handover.descriptor.server import DescriptorServer

SIZES = [4096, 4096]
OTHER_UID = 12345


def memory_files(layer_idx):
    return [(os.memfd_create("dwdp-test"), size) for size in SIZES]


@pytest.fixture
def server():
    made = DescriptorServer(memory_files, num_parcels=1)
    yield made
    made.close()


def raw_connection(server):
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.connect(server.path)  # blocks while the server's backlog is full
    peer.settimeout(5)
    return peer


def take_layer(server, timeout_s=5):
    with DescriptorClient(server.path, server.token, peer_rank=1, timeout_s=timeout_s) as client:
        fds = client.take_handles(0, SIZES)
    for fd in fds:
        os.close(fd)
    return len(fds)


def in_child(function):
    """Call a function in a forked child; returns its result, or the error it raised, as text."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            text = str(function())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    os.waitpid(pid, 0)
    return text


def as_other_user(function):
    def run():
        os.setgid(OTHER_UID)
        os.setuid(OTHER_UID)
        return function()

    return in_child(run)


def test_valid_request_with_descriptors_beside_it_is_refused(server):
    with raw_connection(server) as peer:
        socket.send_fds(peer, [wire.pack_request(0, server.token)], [0, 1])
        with pytest.raises(ExchangeRefused, match="got descriptors beside it"):
            wire.parse_response(peer.recv(wire.MAX_PACKET_BYTES))
    assert take_layer(server) == 2


def test_client_that_asks_without_reading_is_dropped_and_others_served(server):
    with raw_connection(server) as peer:
        peer.setblocking(False)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                peer.send(wire.pack_request(0, server.token))
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:
                break
        assert take_layer(server) == 2


def test_connections_that_open_and_close_at_once_do_no_harm(server):
    for _ in range(2000):
        raw_connection(server).close()
    assert take_layer(server) == 2


def test_proven_client_survives_a_flood_of_silent_connections(server):
    with DescriptorClient(server.path, server.token, peer_rank=1, timeout_s=5) as client:
        flood = [raw_connection(server) for _ in range(600)]
        for fd in client.take_handles(0, SIZES):
            os.close(fd)
        for peer in flood:
            peer.close()


def test_server_out_of_descriptors_makes_room_and_serves_on(server):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert take_layer(server) == 2

    def flood():
        peers = [raw_connection(server) for _ in range(100)]
        time.sleep(1)
        return len(peers)

    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, limits[1]))
    try:
        assert in_child_with_limit(flood, limits) == "100"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert take_layer(server) == 2


def in_child_with_limit(function, limits):
    def run():
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        return function()

    return in_child(run)


def test_failing_source_is_a_refusal_with_its_reason_and_a_warning(caplog):
    def fail(layer_idx):
        raise ValueError("no such block")

    server = DescriptorServer(fail, num_parcels=1)
    with (
        caplog.at_level(logging.WARNING, logger="vllm.dwdp"),
        pytest.raises(ExchangeRefused, match="rank 1: the peer refused: no such block"),
    ):
        take_layer(server)
    server.close()
    assert "refused a request for expert memory: no such block" in caplog.text


def test_wrong_token_is_refused_at_connect(server):
    with pytest.raises(ExchangeRefused, match="expected the token of this group"):
        DescriptorClient(server.path, bytes(32), peer_rank=1, timeout_s=5)


def test_client_short_of_descriptors_names_the_limit_and_keeps_none(server):
    def take():
        with DescriptorClient(server.path, server.token, peer_rank=1, timeout_s=5) as client:
            before = set(os.listdir("/proc/self/fd"))
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, lowest + 100))
            try:
                client.take_handles(0, SIZES)
            except ExchangeRefused as error:
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 100, lowest + 100))
                kept = set(os.listdir("/proc/self/fd")) - before
                return f"{error} / kept {len(kept)}"

    text = in_child(take)
    assert "taking the experts of dwdp rank 1: expected 2 descriptors, got 1" in text
    assert "ulimit -n" in text
    assert text.endswith("kept 0")


@pytest.mark.root
def test_another_user_cannot_enter_the_directory(server):
    text = as_other_user(lambda: take_layer(server))
    assert "rank 1" in text
    assert "Permission denied" in text


@pytest.mark.root
def test_another_user_who_gets_in_is_refused_by_both_ends(server):
    Path(server.path).parent.chmod(0o711)
    Path(server.path).chmod(0o777)
    assert f"expected a peer of user {OTHER_UID}, got user 0" in as_other_user(
        lambda: take_layer(server)
    )

    def ask():
        with raw_connection(server) as peer:
            wire.parse_response(peer.recv(wire.MAX_PACKET_BYTES))

    assert f"expected a peer of user 0, got user {OTHER_UID}" in as_other_user(ask)
    assert take_layer(server) == 2


@pytest.mark.root
def test_another_process_namespace_is_refused(server):
    new_pid_namespace = 0x20000000

    def ask():
        if ctypes.CDLL(None, use_errno=True).unshare(new_pid_namespace):
            return "no namespaces here"
        return in_child(lambda: take_layer(server))

    text = in_child(ask)
    if text == "no namespaces here":
        pytest.skip(text)
    assert "expected a peer in this process and user namespace" in text


@pytest.mark.root
def test_descriptors_in_flight_over_the_users_limit_are_waited_for():
    def run():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        server = DescriptorServer(memory_files, num_parcels=1)
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with left, DescriptorClient(server.path, server.token, peer_rank=1, timeout_s=1) as client:
            with contextlib.suppress(OSError):
                while True:
                    socket.send_fds(left, [b"x"], [0])
            try:
                client.take_handles(0, SIZES)
            except ExchangeRefused as error:
                busy = str(error)
            right.close()
            for fd in client.take_handles(0, SIZES):
                os.close(fd)
        server.close()
        return busy

    text = as_other_user(run)
    assert text.endswith("too many descriptors in flight; raise ulimit -n")


@pytest.mark.parametrize("ending", ["", "raise ValueError", "import os; os.fork()"])
def test_directory_goes_with_the_interpreter(ending):
    script = (
        "from vllm_dwdp.group.handover.descriptor.server import DescriptorServer\n"
        "server = DescriptorServer(lambda layer_idx: [], num_parcels=1)\n"
        f"print(server.path, flush=True)\n{ending}"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    directory = Path(ended.stdout.strip()).parent
    assert directory.name.startswith("vllm-dwdp-")
    assert not directory.exists()
