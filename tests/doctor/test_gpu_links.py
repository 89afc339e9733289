# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What doctor makes of nvidia-smi and nvidia-imex-ctl, for which scripts stand in here."""

import os

import pytest
from support.doctor import look

from vllm_dwdp.doctor.finding import Status
from vllm_dwdp.doctor.groups import gpu_links
from vllm_dwdp.doctor.host import Host

WARN, FAIL, NOT_HERE = Status.WARN, Status.FAIL, Status.NOT_HERE
CHANNELS = "/dev/nvidia-caps-imex-channels"
PARTLY_JOINED = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tSYS\tPIX\t0-23\t0\t\tN/A
GPU1\tNV18\t X \tSYS\tSYS\t0-23\t0\t\tN/A
GPU2\tSYS\tSYS\t X \tSYS\t24-47\t1\t\tN/A
NIC0\tPIX\tSYS\tSYS\t X

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks
"""
JOINED = "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tNV12\t0-95\nGPU1\tNV12\t X \t0-95\n"
ALONE = "\tGPU0\tCPU Affinity\tNUMA Affinity\nGPU0\t X \t0-95\t0\n"


@pytest.fixture
def smi(program, tmp_path):
    """A function that makes an nvidia-smi which knows these outputs."""

    def make(topology=JOINED, gpus="0, 580.159.04, Disabled\n1, 580.159.04, Disabled\n"):
        for name, text in (("topology", topology), ("gpus", gpus)):
            (tmp_path / name).write_text(text)
        program(
            "nvidia-smi",
            f'if [ "$1" = topo ]; then cat {tmp_path}/topology; else cat {tmp_path}/gpus; fi',
        )

    return make


def test_gpus_that_nvlink_joins(smi):
    smi()
    nvlink, mig = look(gpu_links.nvlink, gpu_links.mig)
    assert nvlink.text == "between all 1 pairs: 1 x NV12"
    assert mig.text == "no GPU is divided"


def test_pairs_without_nvlink_are_counted(smi):
    smi(PARTLY_JOINED)
    (found,) = look(gpu_links.nvlink)
    assert found.status is WARN
    assert found.text == "pairs of GPUs by connection: 1 x NV18, 2 x SYS"
    assert "PCIe" in found.remedy


def test_one_gpu_has_no_links(smi):
    smi(ALONE)
    (found,) = look(gpu_links.nvlink)
    assert found.status is NOT_HERE


def test_divided_gpus_fail(smi):
    smi(gpus="0, 580.159.04, Disabled\n1, 580.159.04, Enabled\n")
    (found,) = look(gpu_links.mig)
    assert found.status is FAIL and "GPUs 1 are divided" in found.text
    assert "nvidia-smi -mig 0" in found.remedy


def test_gpus_that_cannot_be_divided_are_well(smi):
    smi(gpus="0, 580.159.04, [N/A]\n")
    (found,) = look(gpu_links.mig)
    assert found.status is Status.OK


def test_nvidia_smi_that_fails_is_a_warning_with_its_words(program):
    program("nvidia-smi", "echo NVML: mismatch >&2; exit 18")
    for found in look(gpu_links.nvlink, gpu_links.mig):
        assert found.status is WARN
        assert "ended with 18: NVML: mismatch" in found.text


def test_programs_that_are_missing_are_not_here(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for found in look(gpu_links.nvlink, gpu_links.mig, gpu_links.imex_service):
        assert found.status is NOT_HERE and "isn't in PATH" in found.text


@pytest.mark.parametrize(("said", "status"), [("READY", Status.OK), ("UNAVAILABLE", WARN)])
def test_state_of_imex(program, said, status):
    program("nvidia-imex-ctl", f"echo {said}")
    (found,) = look(gpu_links.imex_service)
    assert found.status is status and said in found.text


def test_channels_of_imex(tmp_path, put, monkeypatch):
    host = Host(root=tmp_path)
    (found,) = look(gpu_links.imex_channels, host=host)
    assert found.status is NOT_HERE
    path = put(f"{CHANNELS}/channel0")
    (found,) = look(gpu_links.imex_channels, host=host)
    assert found.text == "channel0 can be opened"
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may open everything
    (found,) = look(gpu_links.imex_channels, host=host)
    assert found.status is WARN and str(path) in found.remedy
