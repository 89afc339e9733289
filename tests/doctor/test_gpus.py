# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What doctor says of GPUs, over the fake driver, in the processes that it starts."""

import pytest
from support.doctor import look
from support.fake_cuda import FABRIC, HOST_VIRTUAL_MEMORY, POSIX_DESCRIPTORS, VIRTUAL_MEMORY

from vllm_dwdp.doctor.finding import Status
from vllm_dwdp.doctor.groups import gpu_memory, gpus
from vllm_dwdp.doctor.host import Host, Options

CHANNEL = "/dev/nvidia-caps-imex-channels/channel0"
OK, WARN, FAIL, NOT_HERE = Status.OK, Status.WARN, Status.FAIL, Status.NOT_HERE


def attribute(number, value=0):
    return f"set_attribute({number}, {value})"


def test_two_gpus_share_their_memory_between_processes(gpu_library):
    driver, found, visible = look(gpus.cuda_driver, gpus.gpus, gpus.visible_gpus)
    assert driver.text == "for CUDA 13.0"
    assert found.text == "1 x Fake GPU 0, 80.0 GiB; 1 x Fake GPU 1, 80.0 GiB"
    assert visible.status is OK
    memory, descriptors, fabric, access, pages, host = look(*gpu_memory.GROUP.checks)
    assert memory.text == "all 2 GPUs have it"
    assert fabric.status is NOT_HERE
    assert access.text == pages.text == "all 2 pairs of 2 GPUs"
    assert {memory.status, descriptors.status, access.status, pages.status, host.status} == {OK}


def test_without_a_driver_all_lines_of_gpus_are_not_here(tmp_path):
    """The search path is empty, but a real driver of this machine would be found: see root."""
    host = Host(root=tmp_path, _answers={"gpus": {"no_library": "x: No such file or directory"}})
    found = look(*gpus.GROUP.checks, *gpu_memory.GROUP.checks, host=host)
    assert {finding.status for finding in found} == {NOT_HERE}
    assert found[0].remedy.startswith("To run ranks on GPUs, install NVIDIA's driver")
    assert {finding.remedy for finding in found[1:]} == {"First see to 'NVIDIA driver'."}


def test_gpus_without_the_drivers_library_fail(tmp_path, put):
    put("/proc/driver/nvidia/gpus/0000:01:00.0")
    host = Host(root=tmp_path, _answers={"gpus": {"no_library": "x: No such file or directory"}})
    (found,) = look(gpus.cuda_driver, host=host)
    assert found.status is FAIL and "1 GPUs" in found.text
    assert "container toolkit" in found.remedy


def test_a_broken_library_fails(tmp_path, monkeypatch):
    (tmp_path / "libcuda.so.1").write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    (found,) = look(gpus.cuda_driver)
    assert found.status is FAIL and "libcuda.so.1" in found.text


@pytest.mark.parametrize(
    ("code", "said"), [(802, "fabricmanager"), (803, "different versions"), (1, "error 1")]
)
def test_a_driver_that_cannot_be_initialised_fails(gpu_library, code, said):
    gpu_library(f"fail(b'cuInit', 1, {code})")
    (found,) = look(gpus.cuda_driver)
    assert found.status is FAIL and said in found.text
    assert "`nvidia-smi`" in found.remedy


def test_a_driver_without_gpus_is_not_here(gpu_library):
    gpu_library("fail(b'cuInit', 1, 100)")
    (found,) = look(gpus.cuda_driver)
    assert found.status is NOT_HERE and "no GPU is visible" in found.text


def test_an_old_driver_fails(gpu_library):
    gpu_library("set_version(11020)")
    (found,) = look(gpus.cuda_driver)
    assert found.status is FAIL and "CUDA 11.2" in found.text
    assert found.remedy.startswith("Update NVIDIA's driver")


def test_a_variable_that_hides_all_gpus_fails(gpu_library, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = look(gpus.cuda_driver)
    assert found.status is FAIL and found.remedy.startswith("Unset CUDA_VISIBLE_DEVICES")


def test_gpus_of_the_host_that_are_hidden_are_counted(gpu_library, monkeypatch, tmp_path, put):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    (found,) = look(gpus.visible_gpus, host=Host(root=tmp_path))
    assert found.status is WARN and found.text == "1 GPUs; CUDA_VISIBLE_DEVICES is '1'"
    for name in "ab":
        put(f"/proc/driver/nvidia/gpus/{name}")
    (found,) = look(gpus.visible_gpus, host=Host(root=tmp_path))
    assert found.status is WARN and found.text.startswith("1 of 2 GPUs")
    assert "unset CUDA_VISIBLE_DEVICES" in found.remedy


def test_fewer_gpus_than_ranks_are_named(gpu_library):
    (found,) = look(gpus.gpus, host=Host(Options(dwdp_size=4)))
    assert found.status is WARN and "start 2 ranks here" in found.remedy


@pytest.mark.parametrize(
    ("cuda", "status", "said"),
    [
        (None, WARN, "isn't built"),
        ("14.1", FAIL, "up to 13.0"),
        ("12.8", OK, "built for CUDA 12.8"),
    ],
)
def test_pytorch_must_be_built_for_a_cuda_that_the_driver_knows(cuda, status, said):
    answers = {"pytorch": {"cuda": cuda, "hip": None}, "gpus": {"version": 13_000}}
    (found,) = look(gpus.pytorch_cuda, host=Host(_answers=answers))
    assert found.status is status and said in found.text


def test_release_of_the_kernel_module_is_named(gpu_library, tmp_path, put):
    put(
        "/proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n",
    )
    (found,) = look(gpus.cuda_driver, host=Host(root=tmp_path))
    assert found.text == "for CUDA 13.0, driver 580.159.04"


def test_gpu_without_virtual_memory_fails_with_the_cores_sentence(gpu_library):
    gpu_library(attribute(VIRTUAL_MEMORY))
    memory, *others = look(*gpu_memory.GROUP.checks)
    assert memory.status is FAIL and "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED" in memory.text
    assert [finding.status for finding in others[:2]] == [NOT_HERE, NOT_HERE]


def test_gpus_with_fabric_handles_alone_are_warned_of(gpu_library, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_CUDA_FABRIC", str(tmp_path))
    gpu_library(attribute(POSIX_DESCRIPTORS))
    _, descriptors, fabric, _, pages, _ = look(*gpu_memory.GROUP.checks)
    assert descriptors.status is WARN and "POSIX_FILE_DESCRIPTOR" in descriptors.text
    assert fabric.status is OK
    assert pages.status is FAIL


@pytest.mark.parametrize(
    ("told", "said"), [(attribute(FABRIC), "doesn't support"), ("set_version(12020)", "CUDA 12.3")]
)
def test_gpus_that_know_no_fabric_handles_need_none_on_one_host(gpu_library, told, said):
    gpu_library(told)
    (found,) = look(gpu_memory.fabric_handles)
    assert found.status is NOT_HERE and said in found.text
    assert "keep all ranks of a group on one host" in found.remedy


def test_fabric_handles_that_are_not_permitted_are_warned_of_where_imex_is(
    gpu_library, tmp_path, put
):
    put(CHANNEL)
    (found,) = look(gpu_memory.fabric_handles, host=Host(root=tmp_path))
    assert found.status is WARN and "CUDA_ERROR_NOT_PERMITTED" in found.text
    assert "start nvidia-imex" in found.remedy


@pytest.mark.parametrize("denied", [[(0, 1)], [(0, 1), (1, 0)]], ids=["one way", "both"])
def test_gpus_that_cannot_reach_each_other_are_named(gpu_library, denied):
    gpu_library(*(f"deny_peer_access({reader}, {owner})" for reader, owner in denied))
    access, pages = look(gpu_memory.peer_access, gpu_memory.peer_pages)
    for found in (access, pages):
        assert found.status is FAIL
        assert all(f"{owner}->{reader}" in found.text for reader, owner in denied)
        assert "topo -p2p r" in found.remedy
    assert "cuMemSetAccess" in pages.text


def test_some_pairs_are_enough_for_a_warning():
    works = [[True, True, False], [True, True, False], [False, False, True]]
    found = gpu_memory.judge_pairs(works, "")
    assert found.status is WARN
    assert found.text == "pairs that can't (owner->reader): 2->0, 2->1, 0->2, 1->2, of 6"


def test_one_gpu_has_no_peers_but_shares_a_page_with_another_process(gpu_library, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    access, pages = look(gpu_memory.peer_access, gpu_memory.peer_pages)
    assert access.status is pages.status is OK
    gpu_library("fail(b'cuMemImportFromShareableHandle', 1, 801)")
    (pages,) = look(gpu_memory.peer_pages)
    assert pages.status is FAIL and "not even another process of the same GPU" in pages.text


def test_host_memory_that_a_gpu_cannot_map_is_not_here(gpu_library):
    gpu_library(attribute(HOST_VIRTUAL_MEMORY))
    (found,) = look(gpu_memory.gpu_host_memory)
    assert found.status is NOT_HERE and "dwdp.host_experts" in found.remedy


def test_a_full_gpu_makes_one_line_that_fails_and_the_rest_goes_on(gpu_library):
    gpu_library("set_capacity(0, 0)", "set_capacity(1, 0)")
    memory, *_, host = look(*gpu_memory.GROUP.checks)
    assert memory.status is FAIL and "OUT_OF_MEMORY" in memory.text
    assert host.status is OK
