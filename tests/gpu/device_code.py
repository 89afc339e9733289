# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Keeps the code of one kind of GPU in a compiled library, so that the library packs well.

A library that nvcc made has a container for each source file, in its section `.nv_fatbin`. It has
machine code for many kinds of GPU in it, and intermediate code (PTX) that the driver compiles for
other kinds. `keep` leaves in each container what one kind needs. PTX is compiled to that kind's
machine code, since the driver would take minutes for vLLM's Marlin kernels. What is left out
becomes zeros, so no address in the library changes.

The layout is that of the header fatbinary_section.h of CUDA, and of what nvcc 13 writes.
"""

import concurrent.futures
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

MAGIC = 0xBA55ED50
CONTAINER = struct.Struct("<IHHQ")
"""Magic number, version, bytes of this header, bytes of the entries behind it."""

ENTRY = struct.Struct("<HHIQI8xI")
"""Kind, version, bytes of the entry's header, bytes of its code, compressed bytes, kind of GPU."""

ALIGNMENT = 8
PTX, MACHINE = 1, 2
MAX_PTX_BYTES = 1 << 30


@dataclass(frozen=True)
class Entry:
    """Code in a container, for a kind of GPU: 90 is compute capability 9.0."""

    kind: int
    gpu: int
    header: bytes
    code: bytes
    compressed_bytes: int

    @property
    def bytes(self) -> bytes:
        return self.header + self.code

    def text(self) -> bytes:
        """The uncompressed PTX."""
        compressed = self.code[: self.compressed_bytes]
        text = zstandard.ZstdDecompressor().decompress(compressed, max_output_size=MAX_PTX_BYTES)
        return text.rstrip(b"\0")


def entries(container: bytes) -> Iterator[Entry]:
    """The entries of a container, given without its header."""
    at = 0
    while at < len(container):
        kind, _, header_bytes, code_bytes, compressed, gpu = ENTRY.unpack_from(container, at)
        code = at + header_bytes
        end = code + code_bytes
        yield Entry(kind, gpu, container[at:code], container[code:end], compressed)
        at = end


def containers(library: bytes) -> Iterator[tuple[int, int]]:
    """(place behind its header, bytes) of every container of a library."""
    at = library.find(struct.pack("<IH", MAGIC, 1))
    while at >= 0:
        _, _, header_bytes, num_bytes = CONTAINER.unpack_from(library, at)
        yield at + header_bytes, num_bytes
        at = library.find(struct.pack("<IH", MAGIC, 1), at + header_bytes + num_bytes)


def keep(library: bytes, gpu: int) -> bytes:
    """The library with the code for this kind of GPU only, in as many bytes."""
    places = list(containers(library))
    whole = [list(entries(library[at : at + size])) for at, size in places]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        kept = list(pool.map(lambda found: of_kind(found, gpu), whole))
    made = bytearray(library)
    for (at, num_bytes), code in zip(places, kept, strict=True):
        if len(code) > num_bytes:
            raise ValueError(f"expected at most {num_bytes} bytes of code, got {len(code)}")
        made[at : at + num_bytes] = code.ljust(num_bytes, b"\0")
        struct.pack_into("<Q", made, at - 8, len(code))
    return bytes(made)


def of_kind(found: list[Entry], gpu: int) -> bytes:
    """The entries that a container needs for this kind of GPU.

    If it has none, its smallest entry stays, so that it is no empty container.
    """
    own = [entry for entry in found if entry.kind == MACHINE and entry.gpu == gpu]
    general = [entry for entry in found if entry.kind == PTX and entry.gpu <= gpu]
    if own:
        return b"".join(entry.bytes for entry in own)
    if general:
        return compiled(max(general, key=lambda entry: entry.gpu).text(), gpu)
    return min((entry.bytes for entry in found), key=len)


def compiled(ptx: bytes, gpu: int) -> bytes:
    """An entry with the machine code of PTX."""
    with tempfile.TemporaryDirectory() as folder:
        source, code, container = (Path(folder) / name for name in ("a.ptx", "a.cubin", "a.fatbin"))
        source.write_bytes(ptx)
        subprocess.run(["ptxas", f"-arch=sm_{gpu}", source, "-o", code], check=True)
        image = f"--image3=kind=elf,sm={gpu},file={code}"
        command = ["fatbinary", "-64", "--compress-all", "--compress-mode=size"]
        subprocess.run([*command, f"--create={container}", image], check=True)
        made = container.read_bytes()
    ((at, num_bytes),) = containers(made)
    return made[at : at + num_bytes]
