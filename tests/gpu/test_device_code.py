# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which code stays in a compiled library for one kind of GPU."""

import shutil
import subprocess

import device_code
import pytest
import zstandard
from device_code import CONTAINER, ENTRY, MACHINE, MAGIC, PTX

HEADER_BYTES = 64
BEFORE, BETWEEN, BEHIND = b"host code", b"\0" * 8, b"more host code"
SOURCE = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry nothing() { ret; }
"""


def entry(kind, gpu, code, *, compressed_bytes=0):
    code = code.ljust(-(-len(code) // 8) * 8, b"\0")
    header = ENTRY.pack(kind, 1, HEADER_BYTES, len(code), compressed_bytes, gpu)
    return header.ljust(HEADER_BYTES, b"\0") + code


def ptx(gpu, text=SOURCE):
    code = zstandard.ZstdCompressor().compress(text.encode())
    return entry(PTX, gpu, code, compressed_bytes=len(code))


def library(*containers):
    made = BEFORE
    for found in containers:
        code = b"".join(found)
        made += CONTAINER.pack(MAGIC, 1, CONTAINER.size, len(code)) + code + BETWEEN
    return made + BEHIND


def kept(made):
    """The entries of each container, as (kind, kind of GPU, code)."""
    return [
        [(e.kind, e.gpu, e.code) for e in device_code.entries(made[at : at + size])]
        for at, size in device_code.containers(made)
    ]


OLD, OWN, OTHER, NEWER = (
    entry(MACHINE, 80, b"for 8.0!"),
    entry(MACHINE, 90, b"for 9.0!"),
    entry(MACHINE, 90, b"9.0 too!"),
    entry(MACHINE, 120, b"for 12.0" * 50),
)


def test_machine_code_of_that_kind_stays_and_nothing_moves():
    whole = library([OLD, OWN, NEWER, OTHER], [OWN])
    made = device_code.keep(whole, 90)
    assert kept(made) == [
        [(MACHINE, 90, b"for 9.0!"), (MACHINE, 90, b"9.0 too!")],
        [(MACHINE, 90, b"for 9.0!")],
    ]
    assert len(made) == len(whole) and made.endswith(BEHIND)
    second = whole.rindex(OWN)
    assert made[second : second + len(OWN)] == OWN
    assert b"for 12.0" not in made


def test_a_container_without_code_for_that_kind_keeps_its_smallest_entry():
    made = device_code.keep(library([NEWER, OLD]), 90)
    assert kept(made) == [[(MACHINE, 80, b"for 8.0!")]]


@pytest.mark.skipif(not shutil.which("ptxas"), reason="needs CUDA's ptxas and fatbinary")
def test_ptx_is_compiled_for_that_kind(tmp_path):
    whole = library([ptx(75), ptx(80), ptx(100), NEWER, entry(MACHINE, 80, b"x" * 9000)])
    ((found,),) = kept(device_code.keep(whole, 90))
    assert found[:2] == (MACHINE, 90)


@pytest.mark.skipif(not shutil.which("ptxas"), reason="needs CUDA's ptxas and fatbinary")
def test_code_that_has_become_larger_is_refused():
    with pytest.raises(ValueError, match=r"expected at most \d+ bytes of code, got \d+"):
        device_code.keep(library([ptx(80)]), 90)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs CUDA's compiler")
def test_the_layout_is_that_of_libraries_that_nvcc_makes(tmp_path):
    source, made = tmp_path / "a.cu", tmp_path / "a.so"
    source.write_text("__global__ void nothing() {}\n")
    codes = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in (80, 90, 100)]
    command = ["nvcc", "-shared", "-Xcompiler", "-fPIC", *codes, source, "-o", made]
    subprocess.run(command, check=True)
    whole = made.read_bytes()
    by_container = kept(whole)
    assert {gpu for found in by_container for _, gpu, _ in found} == {80, 90, 100}
    assert {gpu for found in kept(device_code.keep(whole, 90)) for _, gpu, _ in found} == {90}
