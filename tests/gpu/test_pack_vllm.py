# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which files of wheels go into the archive for a machine with a GPU, and how it is unpacked."""

import importlib.metadata
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pack_vllm
import packed_vllm
import pytest

ROOT = Path(__file__).resolve().parents[2]


def write_wheel(folder, name, version, files, requires=()):
    metadata = f"Name: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", metadata)
        for place, text in files.items():
            wheel.writestr(place, text)
    return path


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone of the repository")
def test_archive_and_repository_are_carried_together():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    of_repository = sum(file.stat().st_size for file in files if file.is_file())
    assert of_repository + pack_vllm.MAX_BYTES <= pack_vllm.CARRIED_BYTES


@pytest.fixture
def wheels(tmp_path):
    vllm = {
        "vllm/__init__.py": "version = 1",
        "vllm/configs/moe.json": "{}",
        "vllm/_C_stable_libtorch.abi3.so": "compiled",
        "vllm/_flashmla_C.abi3.so": "compiled",
        "vllm/third_party/gemm/kernel.cuh": "source",
        "vllm/vllm-rs": "a program",
        "vllm-0.32.0.data/scripts/vllm": "a script",
        "vllm-0.32.0.data/purelib/vllm_extra.py": "pure = 1",
    }
    requires = ["lark==1.2.2", "torch==2.13.0", 'depyf>=9; extra == "debug"', "fastapi[all]<2"]
    others = {"lark/__init__.py": "", "lark/_speed.cpython-312-x86_64-linux-gnu.so": "compiled"}
    return [
        write_wheel(tmp_path, "vllm", "0.32.0", vllm, requires),
        write_wheel(tmp_path, "lark", "1.2.2", others),
    ]


def test_most_compiled_code_of_vllm_stays_out(wheels, tmp_path):
    path = tmp_path / "packed.tar.xz"
    pack_vllm.pack(wheels, path, gpu=90)
    with tarfile.open(path) as archive:
        names = set(archive.getnames())
    assert names == {
        "vllm/__init__.py",
        "vllm/configs/moe.json",
        "vllm/_C_stable_libtorch.abi3.so",
        "vllm_extra.py",
        "vllm-0.32.0.dist-info/METADATA",
        "lark/__init__.py",
        "lark/_speed.cpython-312-x86_64-linux-gnu.so",
        "lark-1.2.2.dist-info/METADATA",
    }


def test_a_second_wheel_of_a_package_is_refused(wheels, tmp_path):
    assert pack_vllm.chosen(tmp_path) == sorted(wheels)
    write_wheel(tmp_path, "vllm", "0.33.0", {})
    with pytest.raises(SystemExit, match=r"one wheel of vllm, got vllm-0.32.0.* and vllm-0.33.0"):
        pack_vllm.chosen(tmp_path)


def test_versions_are_those_that_the_wheels_ask_for(wheels, tmp_path):
    asked = pack_vllm.pinned(["lark", "depyf", "fastapi", "pyzmq"], tmp_path)
    assert asked == ["lark==1.2.2", "depyf", "fastapi<2", "pyzmq"]


def test_unpacked_vllm_has_stand_ins_for_what_cannot_be_loaded(
    wheels, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(packed_vllm, "ARCHIVE", tmp_path / "packed.tar.xz")
    monkeypatch.setattr(packed_vllm, "FOLDER", tmp_path / "unpacked")
    pack_vllm.pack(wheels, packed_vllm.ARCHIVE, gpu=90)
    packed_vllm.unpack()
    assert "stand-ins for vLLM's operators: " in capfd.readouterr().err
    assert packed_vllm.has_stand_ins()
    libtorch = packed_vllm.FOLDER / "vllm" / "_C_stable_libtorch.py"
    assert libtorch.read_text() == packed_vllm.STAND_INS.read_text()
    assert not list(libtorch.parent.glob("*.so"))
    found = importlib.metadata.distributions(path=[str(packed_vllm.FOLDER)])
    found = {distribution.name: distribution for distribution in found}
    assert found["vllm"].version == "0.32.0"
    (entry,) = found["vllm-dwdp"].entry_points
    assert (entry.group, entry.value) == ("vllm.general_plugins", "vllm_dwdp.plugin:register")
    before = libtorch.stat().st_ino
    packed_vllm.unpack()
    assert libtorch.stat().st_ino == before, "it is unpacked once"
