# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A server that ends, in whatever way, ends soon, says why, and leaves nothing."""

import contextlib
import json
import re
import shutil
import signal
import time

import psutil
import pytest
from forms import at_port, supervisor
from support import leftovers
from support.server import Server

from vllm_dwdp.bench.ports import free_port

pytestmark = pytest.mark.whole

OPTIONS = ("--max-model-len", "512", "--distributed-executor-backend", "dwdp", "--enforce-eager")
TWO_RANKS = ("--data-parallel-size", "2", *OPTIONS)
TIMEOUT_S = 60
PATIENT = ("--additional-config", json.dumps({"dwdp": {"timeout_s": TIMEOUT_S}}))


@pytest.fixture
def serve(tmp_path):
    """Starts servers. After the test they are stopped, and nothing of them may be left."""
    made = []

    def start(model, *options, log="log"):
        made.append(Server(model, *options, log=tmp_path / log))
        return made[-1]

    yield start
    for server in made:
        server.stop()
    assert leftovers.of_these_tests() == set()


def assert_ends(server, timeout_s):
    """Check that a server ends by itself, with all its processes and an exit code other than 0."""
    assert exit_code(server, timeout_s) != 0


def exit_code(server, timeout_s):
    """Wait until a server ends by itself with all its processes; returns its exit code."""
    gone, left = psutil.wait_procs(server.family(), timeout=timeout_s)
    assert left == [], server.text()[-3000:]
    codes = {process.pid: process.returncode for process in gone}
    code = codes.get(server.process.pid, server.process.returncode)
    assert code is not None
    return code


def last_line(server):
    """The last line of a server's log.

    Python's tracker of shared memory ends later and may complain of killed processes; its lines are
    left out.
    """
    lines = [line for line in server.text().splitlines() if "resource_tracker" not in line]
    return lines[-1]


def of_dwdp(process):
    """Whether dwdp must end this process.

    vLLM's coordinator outlives a killed server, and so does Python's tracker of shared memory.
    """
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False  # the process has ended since
    return "Coordinator" not in command and "resource_tracker" not in command


def assert_killed_server_leaves_nothing(server, within_s):
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + within_s
    while left := [process for process in leftovers.processes() if of_dwdp(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert leftovers.of_these_tests() == set()
    for process in leftovers.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_killed_server_leaves_no_engine_worker_or_memory(serve, demo_model):
    server = serve(demo_model, *TWO_RANKS)
    server.wait_until_ready()
    assert leftovers.memory_files(), "the workers must be seen while they live"
    assert_killed_server_leaves_nothing(server, within_s=60)


@pytest.mark.parametrize("moment", ["Started DP Coordinator", r"Worker pid=\d+"])
def test_server_killed_while_starting_leaves_nothing(serve, demo_model, moment):
    server = serve(demo_model, *TWO_RANKS)
    server.wait_for_log(moment)
    assert_killed_server_leaves_nothing(server, within_s=120)  # importing vLLM takes long


def test_server_ends_when_asked(serve, demo_model):
    server = serve(demo_model, *TWO_RANKS)
    server.wait_until_ready()
    assert server.complete("It is a truth", 8)
    assert server.stop(signal.SIGTERM) is not None, "a process had to be killed"


def test_server_ends_cleanly_when_a_worker_is_killed_while_serving(serve, demo_model):
    server = serve(demo_model, *TWO_RANKS)
    server.wait_until_ready()
    server.workers()[1].kill()
    assert_ends(server, 60)
    assert "EngineDeadError" in server.text() or "died unexpectedly" in server.text()
    assert "dwdp rank 1 ends, because its worker has ended; look for" in server.text()


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["worker", "front-end"])
def test_supervisor_ends_all_ranks_when_one_dies_and_the_log_names_it(serve, demo_model, killed):
    port = free_port(3)
    server = serve(demo_model, *TWO_RANKS, *supervisor(port))
    at_port(server, port + 2).wait_until_ready()
    if killed == "worker":
        server.workers()[1].kill()
        sentence = r"dwdp rank 1 ends, because its worker has ended; look for .*"
    else:
        pid = int(server.wait_for_log(r"APIServer_DP1 pid=(\d+)").group(1))
        psutil.Process(pid).kill()
        sentence = r"because APIServer_DPRank_1 \(process \d+\), which started it, is gone\."
    assert exit_code(server, 60) == 0, "docs/deployment.md says 0"
    assert re.search(sentence, server.text()), server.text()[-3000:]


def test_server_ends_soon_when_a_worker_is_killed_while_starting(serve, demo_model):
    server = serve(demo_model, *TWO_RANKS, *PATIENT)
    worker = int(server.wait_for_log(r"Worker pid=(\d+)").group(1))
    began = time.monotonic()
    psutil.Process(worker).kill()
    assert_ends(server, TIMEOUT_S)
    assert time.monotonic() - began < TIMEOUT_S
    assert re.fullmatch(r"dwdp rank \d .* (ended; .*|ended during start-up\.)", last_line(server))


def test_server_interrupted_while_starting_blames_nobody(serve, demo_model):
    """Ctrl-C reaches all processes of a command. With one API server vLLM reports a failure."""
    server = serve(demo_model, *TWO_RANKS, "--api-server-count", "1")
    server.wait_for_log(r"Worker pid=\d+")
    for process in server.family():
        process.send_signal(signal.SIGINT)
    assert_ends(server, TIMEOUT_S)
    assert "Engine core initialization failed" in server.text()
    assert "out-of-memory" not in server.text()


def test_rank_that_fails_to_load_ends_all_servers_with_one_sentence(serve, demo_model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(demo_model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4096])
    shared = ("--data-parallel-size", "2", "--data-parallel-rpc-port", str(free_port(2)))
    servers = [
        serve(model, *shared, *OPTIONS, *PATIENT, "--data-parallel-rank", str(rank), log=f"{rank}")
        for rank, model in enumerate((demo_model, broken))
    ]
    for server in servers:
        assert_ends(server, 180)
    sentences = [last_line(server) for server in servers]
    assert sentences[0] == sentences[1]
    assert re.match(r"dwdp rank 1 failed while loading: \w+", sentences[0])
