# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Other work beside a measurement: it takes half of a core, or of a device."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from vllm_dwdp.bench.disturbance.disturber import HERE, Disturber
from vllm_dwdp.bench.errors import BenchError


def test_half_of_a_core_is_taken():
    core = max(os.sched_getaffinity(0))
    disturber = Disturber.of_core(core)
    assert disturber.name == f"half of core {core}" and disturber.takes_a_core
    assert not Disturber.of_gpu("cuda:0").takes_a_core
    with disturber.running() as running:
        time.sleep(1.5)
        share = running.share_of_core()
        assert psutil.Process(running._process.pid).cpu_affinity() == [core]
    assert 0.1 < share < 0.6, "it takes less only if others use the core, too"
    assert not running._process.is_running()


def test_a_device_computes_for_half_of_the_time():
    """PyTorch's CPU stands in for a GPU. Other tests run beside, so the range is wide."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "gpu.py"), "cpu", "256"],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            shown = psutil.Process(process.pid)
            before, start = shown.cpu_times().user, time.monotonic()
            time.sleep(1.5)
            share = (shown.cpu_times().user - before) / (time.monotonic() - start)
        finally:
            process.kill()
    assert 0.1 < share < 0.75


def test_a_device_that_is_not_there_is_an_error(capfd):
    with (
        pytest.raises(BenchError, match="takes half of the time of cuda:99, but it has ended"),
        Disturber.of_gpu("cuda:99").running(),
    ):
        pass
    assert "CUDA" in capfd.readouterr().err


def test_a_disturber_that_ends_too_early_spoils_the_round():
    with (
        pytest.raises(BenchError, match="expected a process that takes half of core 0, but it has"),
        Disturber.of_core(0).running() as running,
    ):
        running._process.kill()
        running._process.wait()
