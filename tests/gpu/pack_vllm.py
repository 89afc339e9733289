# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Packs vLLM for a machine that has a GPU and PyTorch, but no vLLM and no network.

    python tests/gpu/pack_vllm.py [--vllm 0.32.0] [--python 3.12] [--wheels FOLDER]

Makes build/gpu-vllm.tar.xz, of at most 48 MiB, from wheels that pip downloads. It has vLLM's Python
files, two of its compiled libraries with the code of one kind of GPU, and the packages that they
import and that such a machine lacks. packed_vllm.py says what takes the place of the others.

Needs `ptxas` and `fatbinary` of CUDA in the PATH, and takes five minutes.
"""

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import device_code
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packed_vllm import ARCHIVE, LIBRARIES

CARRIED_BYTES = 64 << 20
"""What may be carried to such a machine: the files of this repository, and the archive."""

MAX_BYTES = CARRIED_BYTES - (16 << 20) - (512 << 10)
"""Of the archive. If the repository outgrows what it leaves, leave out more files of vLLM."""

NEEDED = (
    *("pydantic", "msgspec", "pyzmq", "cachetools", "blake3", "fastapi", "starlette", "openai"),
    *("setproctitle", "python-json-logger", "partial-json-parser", "depyf"),
    *("compressed-tensors", "lark", "cbor2", "pybase64", "xgrammar", "llguidance", "oss-harmony"),
)
"""Packages that vLLM imports for a text model and that a machine for GPU work lacks.

Such a machine has PyTorch, transformers, numba, uvloop and others already.
"""

NEEDED_BY_THOSE = ("pydantic-core", "typing-inspection", "annotated-types", "jiter", "distro")
NEEDED_BY_THOSE += ("sniffio", "astor", "dill", "loguru", "httpx2", "apache-tvm-ffi")
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_31_x86_64", "manylinux_2_28_x86_64")
PLATFORMS += ("manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64")
PLATFORMS += ("manylinux2014_x86_64",)
PLATFORMS += ("manylinux_2_12_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")
LEFT_OUT = re.compile(
    r"^vllm/.*(\.so(\.\d+)*|\.cubin|\.cuh?|\.hp?p?|\.inl)$|^vllm/vllm-rs$|^vllm/benchmarks/"
    r"|^tvm_ffi/3rdparty/libbacktrace/"
)
"""Files that stay out: vLLM's compiled libraries, sources that are compiled at run time, what only
vLLM's command line imports, and the sources and test data of a library that is linked in."""

KEPT = {f"vllm/{name}.abi3.so" for name in LIBRARIES}


def download(requirements, folder, python):
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *requirements], check=True)


def fetch(vllm, folder, python):
    """Download the wheels that the folder lacks, in versions that suit each other."""
    have = {name_of(wheel) for wheel in folder.glob("*.whl")}
    if "vllm" not in have:
        download([f"vllm=={vllm}"], folder, python)
    wanted = [name for name in NEEDED if name not in have]
    if wanted:
        download(pinned(wanted, folder), folder, python)
    wanted = [name for name in NEEDED_BY_THOSE if name not in have]
    if wanted:
        download(pinned(wanted, folder), folder, python)


def pinned(names, folder):
    """Requirements for these packages, with the versions that wheels in the folder ask for."""
    asked = {}
    for wheel in folder.glob("*.whl"):
        for requirement in requirements_of(wheel):
            name = canonical(requirement.name)
            asked[name] = asked.get(name, SpecifierSet()) & requirement.specifier
    return [f"{name}{asked.get(name, '')}" for name in names]


def requirements_of(wheel):
    """The requirements of a wheel without its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    lines = re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE)
    found = map(Requirement, lines)
    return [r for r in found if "extra" not in str(r.marker)]


def name_of(wheel):
    return canonical(wheel.name.split("-")[0])


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def chosen(folder):
    """The wheels of the packages that are packed, one for each."""
    by_name = {}
    for wheel in sorted(folder.glob("*.whl")):
        name = name_of(wheel)
        if name not in {"vllm", *NEEDED, *NEEDED_BY_THOSE}:
            continue
        if other := by_name.get(name):
            sys.exit(f"expected one wheel of {name}, got {other.name} and {wheel.name}; remove one")
        by_name[name] = wheel
    return list(by_name.values())


def pack(wheels, archive_path, gpu):
    """Write the wheels' files side by side, as pip would install them.

    gpu: the kind of GPU whose code is kept, such as 90 for compute capability 9.0.
    """
    with tarfile.open(archive_path, "w:xz", preset=9) as archive:
        for wheel in sorted(wheels):
            with zipfile.ZipFile(wheel) as files:
                for entry in files.infolist():
                    if place := place_of(entry.filename):
                        content = files.read(entry)
                        if place in KEPT:
                            content = device_code.keep(content, gpu)
                        member = tarfile.TarInfo(place)
                        member.size = len(content)
                        member.mode = 0o644
                        archive.addfile(member, io.BytesIO(content))


def place_of(name):
    """The path of a wheel's file in the archive; None if it stays out."""
    name = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name)
    is_left_out = LEFT_OUT.match(name) and name not in KEPT
    if name.endswith("/") or re.match(r"^[^/]+\.data/", name) or is_left_out:
        return None
    return name


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vllm", default="0.32.0", help="its version")
    parser.add_argument("--python", default="3.12", help="the version on that machine")
    parser.add_argument("--gpu", type=int, default=90, help="the kind of GPU, 90 for Hopper")
    parser.add_argument("--wheels", type=Path, help="a folder to keep the wheels in")
    parser.add_argument("--archive", type=Path, default=ARCHIVE)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.wheels or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        fetch(args.vllm, folder, args.python)
        args.archive.parent.mkdir(parents=True, exist_ok=True)
        pack(chosen(folder), args.archive, args.gpu)
    num_bytes = args.archive.stat().st_size
    print(f"{args.archive}: {num_bytes / 2**20:.1f} MiB")
    if num_bytes > MAX_BYTES:
        sys.exit(f"expected at most {MAX_BYTES / 2**20:.0f} MiB; leave more out in LEFT_OUT")


if __name__ == "__main__":
    main()
