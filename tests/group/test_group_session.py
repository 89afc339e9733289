# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks as real processes: they all start, or all end with the same sentence."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

RANK = Path(__file__).with_name("rank.py")


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(port):
    processes = []

    def start_rank(rank, size=2, dwdp_size=None, **options):
        job = {"rank": rank, "size": size, "dwdp_size": dwdp_size or size, "port": port, **options}
        process = subprocess.Popen(
            [sys.executable, RANK, json.dumps(job)], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield start_rank
    for process in processes:
        process.kill()
        process.wait()


def ending(process):
    out, _ = process.communicate(timeout=60)
    return out.splitlines()[-1]


@pytest.mark.parametrize(("size", "dwdp_size"), [(1, 1), (2, 2), (3, 3), (4, 2)])
def test_all_ranks_of_all_groups_start(start, size, dwdp_size):
    manifest = {"placement": [[0, 2]] * dwdp_size}
    ranks = [start(r, size, dwdp_size, manifest=manifest) for r in range(size)]
    assert [ending(rank) for rank in ranks] == ["end: bound"] * size


@pytest.mark.parametrize("failing", [0, 1])
def test_failure_while_loading_ends_all_with_one_sentence(start, failing):
    ranks = [start(r, 3, **({"fail": "no such file"} if r == failing else {})) for r in range(3)]
    sentence = f"end: dwdp rank {failing} failed: ValueError: no such file"
    assert [ending(rank) for rank in ranks] == [sentence] * 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_fingerprint", "xyz"),
        ("dtype", "float16"),
        ("quantization", "fp8"),
        ("dwdp_version", "9"),
        ("granularity", 65536),
        ("tensors", [["layers.0", "w13_weight", [4, 8, 9], "bfloat16"]]),
    ],
)
def test_different_manifest_ends_both_naming_the_field(start, field, value):
    ranks = [start(0), start(1, manifest={field: value})]
    first, second = (ending(rank) for rank in ranks)
    assert first == second
    assert f"ranks 0 and 1 of a group differ in {field}" in first


@pytest.mark.parametrize("killed", [0, 1])
def test_killed_rank_is_noticed_at_once(start, killed):
    ranks = [start(r, timeout_s=120, load_s=60 if r == killed else 0) for r in range(2)]
    for rank in ranks:
        assert rank.stdout.readline() == "open\n"
    ranks[killed].kill()
    began = time.monotonic()
    assert f"dwdp rank {killed}" in (sentence := ending(ranks[1 - killed]))
    assert "ended during start-up" in sentence
    assert time.monotonic() - began < 15


def test_stopped_rank_ends_the_others_at_the_time_out(start):
    ranks = [start(0, timeout_s=4), start(1, timeout_s=4, load_s=60)]
    assert ranks[1].stdout.readline() == "open\n"
    ranks[1].send_signal(signal.SIGSTOP)
    assert ending(ranks[0]) == "end: dwdp rank 1 did not reach 'manifest' within 4 s."


def test_rank_that_never_comes_ends_the_others_at_the_time_out(start):
    assert "rank 0 did not open the rendezvous" in ending(start(1, timeout_s=2))


def test_foreign_service_on_the_port_is_named(start, port):
    with socket.socket() as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        service.bind(("127.0.0.1", port))
        service.listen()
        assert "can't host the rendezvous" in ending(start(0, timeout_s=3))


def test_store_listens_on_loopback_only_and_is_the_only_port(start, port):
    rank = start(0, load_s=60)
    assert rank.stdout.readline() == "open\n"
    inodes = {
        line.split()[9]: line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{rank.pid}/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    links = [str(fd.readlink()) for fd in Path(f"/proc/{rank.pid}/fd").iterdir()]
    listening = [inodes[i] for i in inodes if f"socket:[{i}]" in links]
    assert listening == [f"0100007F:{port:04X}"]
