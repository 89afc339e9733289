# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Every part of the GPU suite that needs only the driver runs over the fake one.

The parts that need torch.cuda, graphs, Triton or vLLM are listed too; a rehearsal can't run them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GPU_TESTS = Path(__file__).parent
TESTS = GPU_TESTS.parent

REHEARSED = {
    "sharing: one read-only view of own, imported and private memory",
    "sharing: two processes read each other's experts",
    "sharing: four processes read each other's experts",
    "sharing: copies of extra experts",
    "sharing: ranks that see no GPU but their own",
    "sharing: fabric handles",
    "questions: memory of a killed exporter",
    "copies: slices beside one copy",
    "copies: many submissions, a call for each copy",
    "copies: many submissions, batched",
    "copies: host cost of a layer, direct and prefetch",
    "host_memory: experts in host memory: direct and prefetch",
    "attach: attach",
    "attach: copy plans",
}
NOT_REHEARSED = {
    "questions: write through a read-only mapping",
    "graphs: captured direct steps",
    "graphs: captured selective steps",
    "graphs: counts of chosen experts in a captured step",
    "gather: gather kernel beside its reference",
    "moe: 64 tokens, bound by memory",
    "moe: 8192 tokens, bound by arithmetic",
    "vllm_moe: vLLM's Triton MoE kernels, bf16",
    "vllm_moe: vLLM's Triton MoE kernels, block FP8",
    "copies: host cost of a layer, selective",
    "copies: a small host-to-device copy beside a prefetch",
    "host_memory: experts in host memory: selective",
    "host_memory: copies and reads of host memory",
    "host_memory: prefetch from host memory beside compute",
    "attach: gather tables",
    "adopt: adopting layers out of PyTorch's memory",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results that a rehearsal of all checks writes."""
    path = tmp_path_factory.mktemp("rehearsal") / "results.md"
    folders = [TESTS, GPU_TESTS]
    ran = subprocess.run(
        [sys.executable, str(GPU_TESTS / "suite.py"), str(path), "--rehearse", "--seconds", "550"],
        capture_output=True,
        text=True,
        timeout=580,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr + path.read_text()
    return path.read_text()


def outcomes(results):
    """Outcomes by part, from the table at the end of the results."""
    rows = re.findall(r"^\| (.*: .*) \| ([a-z ]+) \| ([\d.]+) \|$", results, re.MULTILINE)
    return {name: outcome for name, outcome, _ in rows}


def test_parts_that_need_only_the_driver_run_over_the_fake_one(results):
    found = {name for name, outcome in outcomes(results).items() if outcome == "rehearsed"}
    assert found == REHEARSED


def test_parts_that_need_more_are_named_and_not_run(results):
    found = {name for name, outcome in outcomes(results).items() if outcome == "not run"}
    assert found == NOT_REHEARSED


def test_nothing_that_was_rehearsed_counts_as_passed(results):
    assert "passed" not in results
    assert "no GPU was at hand" in results


@pytest.mark.skipif("avx512f" not in Path("/proc/cpuinfo").read_text(), reason="needs AVX-512")
def test_kernels_of_cpus_give_the_same_bits_over_views_of_the_fake_driver(tmp_path):
    path = tmp_path / "results.md"
    command = [sys.executable, str(GPU_TESTS / "vllm_formats.py"), "--rehearse", "--jobs", "1"]
    ran = subprocess.run(
        [*command, "--results", str(path), "awq", "compressed W4A16", "fp8 in blocks"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 cases ran" in path.read_text()
    assert "3 with the bits of stock vLLM's output" in path.read_text()
