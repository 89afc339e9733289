# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank without a model in a process of its own, which tells how its start-up goes."""

import atexit
import dataclasses
import multiprocessing
import os
import signal
import tempfile
import threading
import time

from vllm_dwdp._core import HostDriver
from vllm_dwdp.group.handover.peer_probe import PeerProbe
from vllm_dwdp.group.meet import failure_watch
from vllm_dwdp.group.meet.job_board import BoardNotice, JobBoard
from vllm_dwdp.group.meet.manifest import Manifest, TensorSchema
from vllm_dwdp.group.meet.rendezvous import Rendezvous
from vllm_dwdp.group.meet.store import Endpoint
from vllm_dwdp.group.session import GroupSession

BLOCK_BYTES = 4096
MANIFEST = Manifest(
    dwdp_version="0.1.0",
    model_fingerprint="abc",
    dtype="bfloat16",
    quantization="None",
    placement=((0, 2), (2, 4)),
    host_experts=0,
    memory_kind="host",
    granularity=4096,
    tensors=(TensorSchema("layers.0", "w13_weight", (4, 8, 8), (64, 8, 1), "bfloat16"),),
    replicated=(),
)
# Ranks are forked from a server that has imported torch, since the import takes seconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch.distributed", "vllm_dwdp.group.session"])


class RankProcess:
    """The rank's process, and the lines that it says."""

    def __init__(self, job):
        self._lines, said = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_run, args=(job, said))
        self._process.start()
        said.close()

    @property
    def pid(self):
        return self._process.pid

    def hears(self, line, timeout_s=30):
        """Wait for the rank's next line, which must be this one."""
        assert self.next_line(timeout_s) == line

    def ending(self, timeout_s=60):
        """Wait until the process has ended; returns its last line."""
        lines = []
        while (line := self.next_line(timeout_s)) is not None:
            lines.append(line)
        self._process.join(timeout_s)
        return lines[-1]

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()
        self._process.join()

    def next_line(self, timeout_s=30):
        assert self._lines.poll(timeout_s), f"rank said nothing within {timeout_s} s"
        try:
            return self._lines.recv()
        except EOFError:
            return None


def _run(job, said):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    tempfile.tempdir = job.get("temporary_directory")
    _start_up(job, said.send)
    if "serve_s" in job:
        time.sleep(1)
        said.send([thread.name for thread in threading.enumerate() if "dwdp" in thread.name])
        time.sleep(job["serve_s"])
    atexit._run_exitfuncs()
    said.close()


def _start_up(job, say):
    failure_watch.HEAR_S = job.get("hears_s", failure_watch.HEAR_S)
    if job.get("breaks_places"):
        failure_watch.Place = UnreadablePlace
    session = GroupSession(
        _rendezvous(job, say),
        timeout_s=job.get("answer_s", 5),
        load_concurrency=job.get("load_concurrency"),
    )
    try:
        session.open()
        say("open")
        session.try_peers(PeerProbe(HostDriver(), job_rank=job["rank"]))
        say("tried")
        _load_in_turn(session, job, say) if "load_concurrency" in job else _load(session, job, say)
        if "fail" in job:
            raise ValueError(job["fail"])
        manifest = dataclasses.replace(MANIFEST, **job.get("manifest", {}))
        session.meet(manifest)
        session.hand_over(lambda handle_type, layer_idx: [_memory_file(job)], num_parcels=1)
        say("met")
        time.sleep(job.get("bind_s", 0))
        _take_all(session, job)
        session.finish()
        say("end: bound")
    except Exception as error:
        say(f"end: {session.abort(error)}")


def _load_in_turn(session, job, say):
    session.loading_turns.begin()
    say(f"begins {time.monotonic()}")
    _load(session, job, say)
    if "fail" in job:
        raise ValueError(job["fail"])
    say(f"has loaded {time.monotonic()}")
    session.loading_turns.end()


def _load(session, job, say):
    """Load layers that each take `layer_s`, stay for `load_s` without a step, then gather."""
    for layer_idx in range(job.get("num_layers", 0)):
        session.step(f"layer {layer_idx}")
        say(f"layer {layer_idx}")
        time.sleep(job["layer_s"])
    time.sleep(job.get("load_s", 0))
    for name in job.get("gathers", ()):
        session.gather(name, b"")


class UnreadablePlace:
    @classmethod
    def from_bytes(cls, data):
        raise ValueError("a place it can't read")


def _end(say, sentence):
    say(f"ended: {sentence}")
    os._exit(1)


def _rendezvous(job, say):
    return Rendezvous(
        endpoint=Endpoint("127.0.0.1", job["port"]),
        job_rank=job["rank"],
        job_size=job["size"],
        dwdp_size=job["dwdp_size"],
        timeout_s=job.get("timeout_s", 60),
        job_id=job.get("job_id", ""),
        notice=BoardNotice(JobBoard(job["board"])) if "board" in job else None,
        secret=job.get("secret"),
        store_ranks=range(*job["store_ranks"]) if "store_ranks" in job else None,
        end_rank=lambda sentence: _end(say, sentence),
    )


def _take_all(session, job):
    """Take the file of each peer in the group, and check that it is the peer's own."""
    dwdp_rank, first = job["rank"] % job["dwdp_size"], job["rank"] // job["dwdp_size"]
    for peer in range(job["dwdp_size"]):
        if peer != dwdp_rank:
            (fd,) = session.take_handles(peer, 0, [BLOCK_BYTES])
            assert os.pread(fd, 16, 0) == b"rank %d" % (first * job["dwdp_size"] + peer)
            os.close(fd)


def _memory_file(job):
    fd = os.memfd_create("dwdp-test")
    os.write(fd, b"rank %d" % job["rank"])
    return fd, BLOCK_BYTES
