# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The descriptor server hands out the right files, and survives any other request."""

import os
import resource
import socket
import stat
import struct
import time
from contextlib import contextmanager

import pytest

from vllm_dwdp.group.errors import ExchangeRefused
from vllm_dwdp.group.handover.descriptor import wire
from vllm_dwdp.group.handover.descriptor.client import DescriptorClient
from vllm_dwdp.group.handover.descriptor.server import MAX_CONNECTIONS, DescriptorServer

NUM_LAYERS = 3


def memory_files(layer_idx, count=2):
    sizes = [4096 * (layer_idx + 1 + i) for i in range(count)]
    return [(os.memfd_create(f"dwdp-test-{layer_idx}"), size) for size in sizes]


@pytest.fixture
def server():
    made = DescriptorServer(memory_files, num_parcels=NUM_LAYERS)
    yield made
    made.close()


@contextmanager
def client_of(server):
    with DescriptorClient(server.path, server.token, peer_rank=1, timeout_s=5) as client:
        yield client


def check_serves_a_good_client(server):
    with client_of(server) as client:
        fds = client.take_handles(1, [8192, 12288])
        names = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
        assert not any(os.get_inheritable(fd) for fd in fds)
        for fd in fds:
            os.close(fd)
    assert all("dwdp-test-1" in name for name in names)


def open_memory_files():
    links = [os.readlink(fd.path) for fd in os.scandir("/proc/self/fd") if os.path.islink(fd.path)]
    return [link for link in links if "memfd:dwdp-test" in link]


def num_descriptors():
    """The number of open descriptors, once the server's thread has closed ended connections."""
    counts = [0]
    while len(counts) < 5 or len(set(counts[-3:])) > 1:
        time.sleep(0.02)
        counts.append(len(os.listdir("/proc/self/fd")))
    return counts[-1]


def request(magic=wire.MAGIC, version=wire.VERSION, kind=wire.PARCEL, layer_idx=0, token=None):
    return struct.pack("!4sHHi32s", magic, version, kind, layer_idx, token or bytes(32))


HOSTILE = {
    "wrong magic": lambda token: request(magic=b"HTTP", token=token),
    "wrong version": lambda token: request(version=9, token=token),
    "wrong token": lambda token: request(token=b"x" * 32),
    "no token": lambda token: request()[:-32],
    "half a header": lambda token: request(token=token)[:5],
    "one byte": lambda token: b"D",
    "garbage": lambda token: os.urandom(400),
    "far too long": lambda token: request(token=token) + bytes(60_000),
    "one byte too long": lambda token: request(token=token) + b"x",
    "negative layer": lambda token: request(layer_idx=-1, token=token),
    "layer out of range": lambda token: request(layer_idx=NUM_LAYERS, token=token),
    "text as layer": lambda token: request(token=token)[:8] + b"layer one" + token,
    "unknown kind": lambda token: request(kind=3, token=token),
    "largest layer": lambda token: request(layer_idx=2**31 - 1, token=token),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_request_is_refused_and_the_next_one_served(server, kind):
    check_serves_a_good_client(server)
    before = num_descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(5)
        peer.connect(server.path)
        peer.send(HOSTILE[kind](server.token))
        packet, fds, _, _ = socket.recv_fds(peer, wire.MAX_PACKET_BYTES, 8)
        assert fds == []
        with pytest.raises(ExchangeRefused, match="the peer refused: expected"):
            wire.parse_response(packet)
        assert peer.recv(1) == b""
    check_serves_a_good_client(server)
    assert num_descriptors() == before


def test_descriptors_sent_by_a_client_are_not_kept(server):
    check_serves_a_good_client(server)
    before = num_descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.connect(server.path)
        socket.send_fds(peer, [b"junk"], [0, 1, 2])
        peer.recv(100)
    check_serves_a_good_client(server)
    assert num_descriptors() == before


def test_flood_of_silent_connections_does_not_starve_a_client(server):
    peers = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(MAX_CONNECTIONS)]
    for peer in peers:
        peer.connect(server.path)
    check_serves_a_good_client(server)
    for peer in peers:
        peer.close()


def test_more_files_than_one_message_holds_arrive_in_order():
    server = DescriptorServer(lambda layer_idx: memory_files(layer_idx, 600), num_parcels=1)
    with client_of(server) as client:
        fds = client.take_handles(0, [4096 * (1 + i) for i in range(600)])
        for fd in fds:
            os.close(fd)
    server.close()


def test_other_blocks_than_expected_are_refused_and_closed(server):
    with client_of(server) as client:
        with pytest.raises(ExchangeRefused, match="rank 1: expected blocks of"):
            client.take_handles(0, [4096])
        num_descriptors()
        assert open_memory_files() == []


def test_descriptor_limit_is_noticed_and_nothing_leaks(server):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with client_of(server) as client:
        before = num_descriptors()
        packet, fds = wire.pack_response(0, (4096,) * 4), [os.dup(0) for _ in range(4)]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(theirs, [packet], fds)
        for fd in fds:
            os.close(fd)
        original, client._socket = client._socket, ours
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, limit[1]))
        try:
            with pytest.raises(ExchangeRefused, match="ulimit -n"):
                client._receive([])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            client._socket = original
        ours.close()
        theirs.close()
    assert num_descriptors() <= before + 1


def test_directory_is_private_and_goes_with_the_server(server):
    directory = os.path.dirname(server.path)
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    server.close()
    assert not os.path.exists(directory)


def test_credentials_of_another_user_are_refused():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert wire.reason_not_trusted(ours, os.getuid()) is None
        reason = wire.reason_not_trusted(ours, os.getuid() + 1)
        assert reason == f"expected a peer of user {os.getuid() + 1}, got user {os.getuid()}"
