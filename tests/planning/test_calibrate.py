# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measuring this machine, as far as a machine without a GPU allows."""

import os

import pytest

from vllm_dwdp.planning import calibrate, cores
from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.hardware import read_hardware


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(calibrate, "SECONDS", 0.02)
    monkeypatch.setattr(calibrate, "HOST_BYTES", 1 << 24)
    monkeypatch.setattr(calibrate, "HOST_MATRIX", 256)
    monkeypatch.setattr(calibrate, "TOKENS", 256)
    return calibrate.calibrate(2)


@pytest.mark.skipif(calibrate.torch.cuda.is_available(), reason="measures the GPU instead")
def test_a_measured_machine_can_be_planned_for(measured, tmp_path):
    path = tmp_path / "this.yaml"
    calibrate.write_profile(measured, path)
    found = read_hardware(str(path))
    assert found.kind == "cpu"
    assert 1e9 < found.memory_rate < 1e13
    assert 1e9 < found.flops["bf16"] < 1e15
    assert found.shares["attention"] > 0
    assert found.domain >= 2


@pytest.mark.skipif(len(cores.memory_nodes()) > 1, reason="needs one memory node")
def test_one_memory_node_is_its_own_peer(measured):
    assert measured.link == measured.memory_rate


def test_measuring_leaves_cores_and_threads_as_they_were():
    before = os.sched_getaffinity(0), calibrate.torch.get_num_threads()
    with cores.on_cores([min(before[0])]), calibrate._threads(1):
        assert os.sched_getaffinity(0) == {min(before[0])}
    assert (os.sched_getaffinity(0), calibrate.torch.get_num_threads()) == before


def test_lists_of_cores_are_read():
    assert list(cores.listed_cores("0-3,8,10-11\n")) == [0, 1, 2, 3, 8, 10, 11]
    assert list(cores.listed_cores("\n")) == []


def test_a_profile_that_cannot_be_written_is_an_error(tmp_path):
    figures = calibrate.Measured("cpu", "x", 1e9, 1e9, 1e9, 1e12, 1e11, 2)
    with pytest.raises(PlanError, match="expected to write a profile"):
        calibrate.write_profile(figures, tmp_path / "no" / "x.yaml")
