# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Profiles of hardware: those that come with the package, and files that won't do."""

import pytest
import yaml

from vllm_dwdp.planning import profiles
from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.hardware import read_hardware

EXPECTED = ["a100", "b200", "cpu-two-socket", "gb200", "gb300", "h100", "h200", "mi355x"]
NAMES = profiles.names(profiles.HARDWARE)


def raw(name):
    return yaml.safe_load(profiles.path(profiles.HARDWARE, name).read_text())


def test_all_profiles_are_there():
    assert NAMES == EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_each_figure_has_its_source(name):
    found = raw(name)
    figures = [found[key] for key in found if key.endswith(("_gb", "_per_s", "domain"))]
    figures += found["tflops"].values()
    assert len(figures) >= 5
    assert all(len(figure["source"]) > 10 for figure in figures)
    assert read_hardware(name.upper()).name == name


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"memory_gb": None}, "expected a number above 0 as memory_gb"),
        ({"memory_gb": {"value": "much"}}, "expected a number above 0 as memory_gb"),
        ({"link_gb_per_s": 0}, "expected a number above 0 as link_gb_per_s"),
        ({"domain": True}, "expected a number above 0 as domain"),
        ({"tflops": {"fp8": 1}}, "expected a number above 0 as bf16"),
        ({"tflops": {"bf16": 1, "fp3": 1}}, "expected bf16, fp8, fp4 under tflops"),
        ({"kind": "tpu"}, "expected 'gpu' or 'cpu' as kind"),
        ({"achieved_shares": {"luck": 1}}, "as achieved_shares"),
    ],
)
def test_a_profile_that_lacks_something_is_refused(change, sentence, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**raw("h100"), **change}))
    with pytest.raises(PlanError, match=sentence):
        read_hardware(str(path))


@pytest.mark.parametrize("text", ["[", "- 1", "\x00"])
def test_a_file_that_is_no_profile_is_refused(text, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(PlanError, match=r"expected a (profile|mapping)"):
        read_hardware(str(path))


def test_unknown_hardware_is_refused_with_what_is_known():
    with pytest.raises(PlanError, match=r"out of a100, .*mi355x.*got 'tpu'"):
        read_hardware("tpu")


def test_figures_may_stand_without_a_source(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**raw("h100"), "memory_gb": 94}))
    assert read_hardware(str(path)).memory == 94e9


def test_weights_without_hardware_for_them_are_multiplied_in_bf16():
    assert read_hardware("h100").precision("fp4") == "bf16"
    assert read_hardware("gb200").precision("fp4") == "fp4"


def test_a_wheel_has_its_own_copies(tmp_path, monkeypatch):
    """csrc/CMakeLists.txt installs them there; a source tree has them in configs/."""
    package = tmp_path / "vllm_dwdp"
    (package / "configs" / "hardware").mkdir(parents=True)
    (package / "planning").mkdir()
    monkeypatch.setattr(profiles, "__file__", str(package / "planning" / "profiles.py"))
    assert profiles.folder(profiles.HARDWARE) == package / "configs" / "hardware"
    assert profiles.folder(profiles.MODELS) == tmp_path / "configs" / "models"
