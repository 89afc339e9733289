# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The ranks of a group share the experts of every method and kernel that docs/formats.md lists."""

import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
from contract.formats import kernel_source, table
from contract.formats.compatibility import mark, on_gpu

from vllm_dwdp.engine.moe.kernel.tried_pairs import TRIED
from vllm_dwdp.engine.setup.format_checks import RAN_ON_GPU, why_unshared

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ROOT / "tests" / "contract" / "formats"
PROBE = FORMATS / "probe.py"
PAGE = ROOT / "docs" / "formats.md"
RESULTS = ROOT / "docs" / "results" / "2026-11-27-h200.md"
VERSIONS = ROOT / "docs" / "compatibility.md"
NEEDS_TRITON_KERNELS = {
    "gpt-oss mxfp4, TRITON, sm90",
    "gpt-oss mxfp4, TRITON, sm100",
    "gpt-oss mxfp4, TRITON_UNFUSED, sm90",
    "gpt-oss mxfp4, padded, TRITON, sm90",
    "mxfp4, TRITON, sm90",
    "mxfp4, TRITON_UNFUSED, sm90",
    "mxfp4, TRITON_UNFUSED, sm100",
}
"""Cases that are run only where triton_kernels is, see kernel_source.py."""

OF_TRITON_KERNELS = {
    ("GptOssMxfp4MoEMethod", "OAITritonMxfp4ExpertsMonolithic"),
    ("GptOssMxfp4MoEMethod", "UnfusedOAITritonExperts"),
    ("Mxfp4MoEMethod", "UnfusedOAITritonExperts"),
}
"""The methods and kernels of those cases."""

OF_ENGINES = {("UnquantizedFusedMoEMethod", "CPUUnquantizedExperts")}
"""The method and kernel that engines run on CPUs, whose outputs tests/engine compares."""

NOT_BUILT = "not built here"
NOT_RUN = "not run"
SHARED = ("same bits", "same values, other bits")


def run_probe(*arguments, num_experts=7):
    environment = os.environ | {"NUM_EXPERTS": str(num_experts)}
    pipes = {"capture_output": True, "text": True}
    return subprocess.run(
        [sys.executable, PROBE, *arguments], timeout=500, env=environment, **pipes
    )


def has_kernels():
    """Whether triton_kernels is at hand."""
    return kernel_source.folder() is not None


def probe(out, *arguments, num_experts=7):
    """Results of the probe, by case."""
    fewer = () if has_kernels() else ("--at-least", "0")
    done = run_probe("--json", out, *fewer, *arguments, num_experts=num_experts)
    assert done.returncode == 0, done.stderr[-4000:]
    return {result["case"]: result for result in json.loads(out.read_text())}


def test_table_of_versions_agrees_with_the_page():
    rows = [
        line.strip("| ").split(" | ") for line in table.read(VERSIONS.read_text(), table.VERSIONS)
    ]
    header, _, *rows = rows
    found = {", ".join(row[:3]): row[header.index("0.32.0")] for row in rows}
    assert found == {case: mark(verdict) for case, verdict in of_page().items()}
    ran = {", ".join(row[:3]): row[-1] for row in rows if row[-1] != "never run"}
    assert ran.items() <= on_gpu(RESULTS.read_text()).items()
    assert len(ran) > 50


def test_kernels_that_ran_on_a_gpu_are_those_of_the_results():
    rows = [line.split(" | ") for line in RESULTS.read_text().splitlines() if ", sm" in line]
    kernels = {row[1] for row in rows if len(row) > 5}
    assert {kernel for kernel in kernels if not why_unshared(kernel)} == RAN_ON_GPU


def of_page():
    """Verdicts of the page's table, by case."""
    rows = [line.strip("| ").split(" | ") for line in table.read(PAGE.read_text())[2:]]
    return {", ".join(row[:3]): row[3] for row in rows}


def check_page(results):
    """Compare the verdicts with the page's, but for cases that may be built on one machine only."""
    found = {case: result["verdict"] for case, result in results.items()}
    expected = of_page()
    assert list(found) == list(expected)
    not_run = {case for case, verdict in found.items() if verdict.startswith(NOT_RUN)}
    assert not_run == (set() if has_kernels() else NEEDS_TRITON_KERNELS)
    if not_run:
        warnings.warn(f"not run without triton_kernels: {not_run}", stacklevel=1)
    for case in not_run:
        del found[case]
    for case, verdict in found.items():
        if expected[case].startswith(NOT_BUILT):  # another machine may build it
            assert verdict.startswith((NOT_BUILT, "refused: ", *SHARED)), (case, verdict)
        else:
            assert verdict == expected[case], case


def test_a_run_that_builds_too_few_cases_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_KERNELS_PATH", str(tmp_path))  # an empty folder
    few = "^mxfp4, TRITON", "^unquantised, TRITON"
    assert "mxfp4, TRITON, sm90: not run: triton_kernels" in run_probe(*few).stdout
    done = run_probe("--at-least", "2", *few)
    assert done.returncode != 0
    assert "expected at least 2 cases to be built, got 1 of 4; fetch triton" in done.stderr


def test_triton_kernels_alone_is_unpacked_from_a_wheel(monkeypatch, tmp_path):
    path = tmp_path / "vllm-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name in ("__init__.py", "third_party/triton_kernels/__init__.py"):
            wheel.writestr(f"vllm/{name}", "")
    monkeypatch.setenv("TRITON_KERNELS_PATH", str(tmp_path / "kept"))
    assert kernel_source.folder() is None
    kernel_source.unpack(path, tmp_path / "kept")
    assert kernel_source.folder() == tmp_path / "kept"
    files = [file for file in (tmp_path / "kept").rglob("*") if file.is_file()]
    assert files == [tmp_path / "kept" / "triton_kernels" / "__init__.py"]


@pytest.mark.parametrize("num_experts", [7, 2], ids=["4 and 3 experts", "1 expert each"])
def test_every_format_is_shared_as_the_page_says(tmp_path, num_experts):
    check_page(probe(tmp_path / "found.json", num_experts=num_experts))


@pytest.fixture(scope="module")
def untried(tmp_path_factory):
    """Results of the probe if dwdp builds small layers of every kind, by case."""
    return probe(tmp_path_factory.mktemp("untried") / "found.json", "--untried")


def test_small_layers_tell_the_tensors_of_experts_that_sizes_tell(untried):
    assert not any(result["other_rows"] for result in untried.values())
    check_page(untried)


def test_tried_kinds_are_those_that_the_probe_shares(untried):
    page = of_page()
    shared = {
        (result["method"], result["kernel"])
        for case, result in untried.items()
        if result["verdict"].startswith(SHARED) and page[case].startswith(SHARED)
    }
    if not has_kernels():
        shared |= OF_TRITON_KERNELS
    listed = {(method, kernel) for method, kernels in TRIED.items() for kernel in kernels}
    assert listed == shared | OF_ENGINES


@pytest.mark.skipif("amx_tile" in Path("/proc/cpuinfo").read_text(), reason="the CPU has AMX")
def test_stock_vllm_runs_on_cpus_what_the_page_says():
    done = subprocess.run(
        [sys.executable, FORMATS / "on_cpu.py"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines() == table.read(PAGE.read_text(), table.CPU)[2:]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Results of the planted mistakes, by their names in plants.py."""
    return probe(tmp_path_factory.mktemp("planted") / "found.json", "--planted")


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        ("axis", "differ in replicated: w2_weight_scale_inv"),
        ("strides", "rows of 4 experts in 'w13_weight' one after the other in memory"),
        ("own_rows", "keeps rows of experts in 'own_scales' that are no view"),
        ("stale_count", "fused_experts.my_num_experts' still counts 4 experts"),
        ("reduced_scale", "differ in replicated: w13_input_scale"),
    ],
)
def test_mistake_is_refused_by_name(planted, plant, sentence):
    assert sentence in planted[plant]["refused"]


def test_weights_that_are_processed_twice_are_found(planted):
    assert planted["processed_twice"]["different"]


def test_second_name_of_a_tensor_follows_the_first(planted):
    assert planted["second_name"]["verdict"] == "same bits"
    assert "w13_view" not in planted["second_name"]["shared"], "the ranks share it once"
