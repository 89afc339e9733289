# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compiles the gather kernel for GPUs, which needs none; prints what it was compiled for."""

import itertools

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_dwdp.fetch import gather

CAPABILITIES = (80, 90, 100)
TYPES = {"ids_address": "i64", "num_ids": "i32", "num_peers": "i32"} | dict.fromkeys(
    ("held", "held_next"), "*i32"
)


def compile_for(capability, id_type, word_bytes, word_type, is_aligned):
    """is_aligned: as Triton finds its arguments where all tables begin at 16 bytes, or none."""
    constants = {
        "PARTS": gather.PARTS,
        "ID_TYPE": id_type,
        "WORD_TYPE": word_type,
        "WORD_BYTES": word_bytes,
        "ID_BLOCK": gather.ID_BLOCK,
        "WORD_BLOCK": gather.WORD_BLOCK,
    }
    kernel = gather._gather
    signature = {
        name: "constexpr" if name in constants else TYPES.get(name, "*i64")
        for name in kernel.arg_names
    }
    tables = [(i,) for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*"]
    aligned = {table: [["tt.divisibility", 16]] for table in tables} if is_aligned else {}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


for capability in CAPABILITIES:
    for id_type, word, is_aligned in itertools.product(
        gather.ID_TYPES.values(), gather.WORD_TYPES.items(), (False, True)
    ):
        compiled = compile_for(capability, id_type, *word, is_aligned)
        assert compiled.asm["cubin"]
    print(f"sm_{capability}", compiled.metadata.name)
