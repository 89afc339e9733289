# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What doctor says of vLLM, the plugin, the core and other packages as they are installed."""

import importlib.metadata
import sys

import pytest
from support.doctor import look

from vllm_dwdp.doctor.finding import Status
from vllm_dwdp.doctor.groups import installation, packages
from vllm_dwdp.doctor.host import Host
from vllm_dwdp.engine import compat

OK, WARN, FAIL, NOT_HERE = Status.OK, Status.WARN, Status.FAIL, Status.NOT_HERE


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that puts a package's metadata before those that are installed."""

    def install(name, version):
        folder = tmp_path / "site" / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}")
        monkeypatch.syspath_prepend(tmp_path / "site")
        return tmp_path / "site"

    return install


def test_the_installed_vllm_has_all_names():
    version, names = look(installation.vllm, installation.vllm_names)
    assert version.text == f"{compat.installed_version()}; supported are 0.30 to 0.33"
    assert names.status is OK


def test_an_unsupported_vllm_fails_with_the_range(installed):
    installed("vllm", "0.29.1")
    version, names = look(installation.vllm, installation.vllm_names)
    assert version.status is FAIL
    assert "supports vLLM 0.30 to 0.33, this is 0.29.1" in version.text
    assert version.remedy.startswith("Install vLLM 0.30 to 0.33")
    assert names.status is NOT_HERE


def test_no_vllm_fails(monkeypatch):
    monkeypatch.setattr(compat, "DISTRIBUTIONS", ("no-such-vllm",))
    (found,) = look(installation.vllm)
    assert found.status is FAIL and "No vLLM found" in found.text


def test_vllm_for_cpus_without_the_name_that_its_command_asks_for(monkeypatch):
    stock = importlib.metadata.version

    def version(name):
        if name == "vllm":
            raise importlib.metadata.PackageNotFoundError(name)
        return stock(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (found,) = look(installation.vllm)
    assert found.status is WARN and "examples/setup_env.sh" in found.remedy


def test_a_changed_vllm_fails_with_what_it_lacks(tmp_path, monkeypatch):
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    (found,) = look(installation.vllm_names)
    assert found.status is FAIL
    assert "config/cache.py: CacheConfig.gpu_memory_utilization;" in found.text
    assert found.text.endswith("more")


def test_the_plugin_is_registered_and_found_by_vllm():
    point, plugin, device = look(
        installation.entry_point, installation.plugin, installation.vllm_device
    )
    assert point.text.startswith("vllm_dwdp.plugin:register of vllm-dwdp ")
    assert plugin.status is device.status is OK


def test_a_package_that_is_not_installed_has_no_entry_point(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    (found,) = look(installation.entry_point)
    assert found.status is FAIL and "pip install" in found.remedy


@pytest.mark.parametrize(
    ("value", "status"), [("dwdp", OK), ("a,dwdp", OK), ("a, dwdp", FAIL), ("", FAIL)]
)
def test_variable_must_name_the_plugin_as_vllm_reads_it(monkeypatch, value, status):
    monkeypatch.setenv("VLLM_PLUGINS", value)
    (found,) = look(installation.vllm_plugins)
    assert found.status is status
    assert (status is OK) or "Add dwdp to VLLM_PLUGINS" in found.remedy


def test_a_missing_core_fails_and_what_needs_it_is_not_looked_at(on_start):
    on_start("import sys\nsys.modules['vllm_dwdp._core'] = None\n")
    core, plugin = look(installation.core, installation.plugin)
    assert core.status is FAIL and "vllm_dwdp._core" in core.text
    assert core.remedy.startswith("Install vllm-dwdp again")
    assert plugin.status is NOT_HERE and plugin.remedy == "First see to 'compiled core'."


def test_a_pytorch_that_cannot_be_imported_fails(on_start):
    on_start("import sys\nsys.modules['torch'] = None\n")
    (found,) = look(installation.pytorch)
    assert found.status is FAIL and "pip check" in found.remedy


def test_a_vllm_that_cannot_be_imported_fails_with_the_reason(on_start):
    on_start("import sys\nsys.modules['vllm.plugins'] = None\n")
    (found,) = look(installation.plugin)
    assert found.status is FAIL and "vllm.plugins" in found.text


@pytest.mark.parametrize(
    ("answer", "check"),
    [
        ({"is_registered": False}, installation.plugin),
        ({"unsupported": "this is 'xpu'", "device": "xpu"}, installation.vllm_device),
    ],
)
def test_what_vllm_says_against_dwdp_fails(answer, check):
    (found,) = look(check, host=Host(_answers={"vllm": answer}))
    assert found.status is FAIL


def test_optional_packages_that_are_old_or_missing(installed, monkeypatch):
    installed("ray", "2.9.1")
    (ray,) = look(packages.ray)
    assert ray.status is WARN and "pip install 'ray>=2.48'" in ray.remedy
    monkeypatch.setattr(packages, "version_of", lambda _: None)
    for found in look(packages.ray, packages.nixl):
        assert found.status is NOT_HERE and "pip install" in found.remedy


def test_a_nixl_that_cannot_be_imported_is_a_warning(installed):
    site = installed("nixl", "1.0")
    (site / "nixl").mkdir()
    (site / "nixl" / "__init__.py").write_text("raise ImportError('libucp.so.0 is missing')")
    (found,) = look(packages.nixl)
    assert found.status is WARN and "libucp.so.0 is missing" in found.text
