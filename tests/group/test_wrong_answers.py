# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A descriptor client says what is wrong in a server's answer, and keeps no descriptor."""

import os
import socket
import struct
import threading

import pytest

from vllm_dwdp.group.errors import ExchangeRefused
from vllm_dwdp.group.handover.descriptor import wire
from vllm_dwdp.group.handover.descriptor.client import DescriptorClient

SIZES = [4096, 8192]


def files(count):
    return [os.memfd_create("dwdp-answer") for _ in range(count)]


ANSWERS = {
    "closed connection": (b"", 0, "got the end of the connection"),
    "half a header": (b"DWDP", 0, "expected a response of 12 bytes, got 4"),
    "wrong magic": (b"HTTP" + wire.pack_response(0, SIZES)[4:], 2, "got b'HTTP' version 1"),
    "fewer files than sizes": (wire.pack_response(0, SIZES), 1, "expected 2 descriptors"),
    "more files than sizes": (wire.pack_response(0, SIZES), 3, "expected 2 descriptors"),
    "other sizes": (wire.pack_response(0, [4096, 4096]), 2, "expected blocks of"),
    "fewer blocks": (wire.pack_response(0, [4096]), 1, "expected blocks of"),
    "more to come than expected": (wire.pack_response(9, SIZES), 2, "and 9 to come"),
    "no progress": (wire.pack_response(2, []), 0, "expected blocks of"),
    "broken size": (wire.pack_response(0, SIZES) + b"x", 2, "whole sizes of 8 bytes"),
    "unknown status": (struct.pack("!4sHHI", b"DWDP", 1, 77, 0), 0, "the peer refused"),
    "far too long": (wire.pack_response(0, SIZES) + bytes(9000), 2, "a packet of at most"),
}


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
        made.bind(str(tmp_path / "s"))
        made.listen()
        yield made


def answer_once(listener, packet, fds):
    """Accept the hello, then send one answer to the first request and close."""
    with listener.accept()[0] as peer:
        peer.recv(100)
        peer.send(wire.pack_response(0, []))
        peer.recv(100)
        if packet:
            socket.send_fds(peer, [packet], fds)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("kind", ANSWERS)
def test_wrong_answer_is_named_and_nothing_is_kept(listener, kind):
    packet, num_files, message = ANSWERS[kind]
    thread = threading.Thread(target=answer_once, args=(listener, packet, files(num_files)))
    thread.start()
    before = len(os.listdir("/proc/self/fd")) - num_files
    path = listener.getsockname()
    with DescriptorClient(path, bytes(32), peer_rank=3, timeout_s=5) as client:
        with pytest.raises(ExchangeRefused, match=message) as caught:
            client.take_handles(0, SIZES)
        assert "dwdp rank 3" in str(caught.value)
    thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_silent_server_costs_the_time_out_and_is_named(listener):
    with pytest.raises(ExchangeRefused, match=r"dwdp rank 3: no answer within 0\.2 s"):
        DescriptorClient(listener.getsockname(), bytes(32), peer_rank=3, timeout_s=0.2)


def test_client_says_that_it_waits(listener):
    calls = []
    options = {"peer_rank": 3, "timeout_s": 1, "on_wait": lambda: calls.append(1)}
    with pytest.raises(ExchangeRefused, match="no answer within"):
        DescriptorClient(listener.getsockname(), bytes(32), **options)
    assert len(calls) > 3


def test_full_backlog_costs_the_time_out_and_is_named(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as full:
        full.bind(str(tmp_path / "full"))
        full.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
            first.connect(full.getsockname())
            with pytest.raises(ExchangeRefused, match="no answer within"):
                DescriptorClient(full.getsockname(), bytes(32), peer_rank=3, timeout_s=0.2)


def test_absent_server_is_named(tmp_path):
    with pytest.raises(ExchangeRefused, match=r"dwdp rank 3: .*No such file"):
        DescriptorClient(str(tmp_path / "gone"), bytes(32), peer_rank=3, timeout_s=1)
