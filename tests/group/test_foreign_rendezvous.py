# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank whose rendezvous address belongs to another program or job says so, and doesn't hang."""

import dataclasses
import socket
import threading
import time
from argparse import Namespace
from pathlib import Path

import pytest
from rank import CONTEXT, MANIFEST

from vllm_dwdp.group.errors import ManifestMismatch
from vllm_dwdp.group.meet import job_board
from vllm_dwdp.group.meet.manifest import Manifest
from vllm_dwdp.group.meet.process_identity import ProcessIdentity
from vllm_dwdp.group.meet.rendezvous import Rendezvous
from vllm_dwdp.group.meet.store import Endpoint, RendezvousStore, is_listened_to


@pytest.fixture
def service(port):
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        made.listen()
        yield made


def a_port_of_the_kernels():
    """A port that the kernel may give to a connection: an even one. `bind` gets odd ones."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1] + 1


def has_met_itself(port):
    """Whether a connection has or had this port at both ends; /proc shows it for a minute."""
    address = f"0100007F:{port:04X}"
    return f" {address} {address} " in Path("/proc/net/tcp").read_text()


def greet(service, greeting):
    while True:
        try:
            peer, _ = service.accept()
        except OSError:
            return
        with peer:
            peer.recv(100)
            peer.send(greeting)


def host_plain_store(port, ready):
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    ready.send(1)
    time.sleep(60)
    del store


def test_taken_port_is_named_by_the_host(start, service):
    assert "can't host the rendezvous at 127.0.0.1:" in start(0, timeout_s=3).ending()


def test_waiting_rank_whose_connections_meet_themselves_leaves_rank_0_its_port():
    endpoint = Endpoint("127.0.0.1", a_port_of_the_kernels())
    while not has_met_itself(endpoint.port):
        assert not any(is_listened_to(endpoint) for _ in range(1000))
    store = RendezvousStore(endpoint, timeout_s=10)
    store.host(b"{}")
    assert is_listened_to(endpoint)
    store.close()


def test_silent_service_on_the_port_is_named(start, service):
    ending = start(1, timeout_s=2).ending()
    assert "dwdp rank 1 failed while joining: expected a dwdp rendezvous at 127.0.0.1" in ending


def test_web_service_on_the_port_is_named(start, service):
    threading.Thread(target=greet, args=(service, b"HTTP/1.0 400\r\n\r\n"), daemon=True).start()
    assert "expected a dwdp rendezvous at 127.0.0.1" in start(1, timeout_s=2).ending()


def test_another_programs_store_on_the_port_is_named(start, port):
    is_ready, ready = CONTEXT.Pipe(duplex=False)
    other = CONTEXT.Process(target=host_plain_store, args=(port, ready))
    other.start()
    is_ready.recv()
    assert "expected a dwdp rendezvous at 127.0.0.1" in start(1, timeout_s=2).ending()
    other.kill()


def test_rank_of_another_job_is_refused_and_the_first_job_starts(start):
    first = [start(0, load_s=3), start(1, load_s=3)]
    for rank in first:
        rank.hears("open")
    ending = start(1).ending()
    assert "expected to be rank 1 at 127.0.0.1" in ending
    assert f"process {first[1].pid} of user" in ending
    assert [rank.ending() for rank in first] == ["end: bound"] * 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": 4}, "of a job of {'job_size': 2, 'dwdp_size': 2} instead of {'job_size': 4, "),
        ({"job_id": "b"}, "which another command started"),
    ],
)
def test_rank_that_finds_another_job_leaves_its_place_to_whom_it_belongs(start, options, reason):
    first = start(0, job_id="a")
    first.hears("open")
    stranger = start(1, **{"job_id": "a", **options})
    ending = stranger.ending()
    assert "failed while joining: expected rank 0 of this rank's job at 127.0.0.1:" in ending
    assert f"got process {first.pid}, {reason}" in ending
    assert "dwdp.rendezvous" in ending
    assert [rank.ending() for rank in (first, start(1, job_id="a"))] == ["end: bound"] * 2


def test_jobs_with_a_board_each_start_at_once_without_a_port_of_their_own(start):
    ranks = []
    for job_id in ("a", "b"):
        job = Namespace()
        job_board.put_up(job)
        options = {"port": 0, "job_id": job_id, "board": job.dwdp_board}
        ranks += [(start(1, **options), job), (start(0, **options), job)]
    assert [rank.ending() for rank, _ in ranks] == ["end: bound"] * 4


@pytest.mark.parametrize(("job_rank", "job_size", "dwdp_size"), [(2, 2, 2), (-1, 2, 2), (0, 3, 2)])
def test_rank_outside_whole_groups_is_an_error(job_rank, job_size, dwdp_size):
    with pytest.raises(ValueError, match="expected a job of whole groups"):
        Rendezvous(
            endpoint=Endpoint("127.0.0.1", 1),
            job_rank=job_rank,
            job_size=job_size,
            dwdp_size=dwdp_size,
            timeout_s=1,
        )


def test_manifest_of_another_version_is_named():
    data = MANIFEST.to_bytes().replace(b'"granularity"', b'"page_bytes"')
    with pytest.raises(ManifestMismatch, match=r"from dwdp '0\.1\.0'; install one version"):
        Manifest.from_bytes(data)


def test_manifest_survives_the_wire():
    assert Manifest.from_bytes(MANIFEST.to_bytes()) == MANIFEST


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"boot_id": "x", "host": "far"}, "it is on host far, this rank on"),
        ({"namespaces": "x"}, "it is in another namespace"),
        ({"uid": 7}, "it runs as user 7"),
    ],
)
def test_rank_that_cannot_share_memory_is_refused_with_the_reason(change, reason):
    own = ProcessIdentity.own()
    assert own.reason_not_reachable(own) is None
    assert reason in (own.reason_not_reachable(dataclasses.replace(own, **change)) or "")


def test_reused_process_id_counts_as_ended():
    own = ProcessIdentity.own()
    assert not own.has_ended(own)
    assert dataclasses.replace(own, start_ticks=own.start_ticks - 1).has_ended(own)


def test_process_name_that_is_cut_inside_a_character_is_no_obstacle():
    name = Path("/proc/self/comm")
    before = name.read_bytes()
    name.write_bytes("äöüäöüäöü".encode())
    try:
        own = ProcessIdentity.own()
        assert not own.has_ended(own)
    finally:
        name.write_bytes(before.strip())


@pytest.mark.parametrize("change", [{"boot_id": "x"}, {"namespaces": "x"}])
def test_process_that_cannot_be_seen_does_not_count_as_ended(change):
    """Its process id may be another process's here, so only the time-out can notice its end."""
    own = ProcessIdentity.own()
    gone = dataclasses.replace(own, start_ticks=own.start_ticks - 1)
    assert gone.has_ended(own)
    assert not dataclasses.replace(gone, **change).has_ended(own)
