# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compiles the gather kernel for several GPU architectures, without a GPU, and prints them."""

import itertools

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_dwdp.device import gather

CAPABILITIES = (80, 90, 100)
TYPES = {
    "ids_address": "i64",
    "num_ids": "i32",
    "table": "*i64",
    "held": "*i32",
    "turn": "i32",
    "holds_any": "i32",
    "totals": "*i64",
}


def compile_for(capability, id_type, word_bytes, word_type):
    kernel = gather._gather
    constants = {"ID_TYPE": id_type, "WORD_TYPE": word_type, "WORD_BYTES": word_bytes}
    signature = {name: TYPES.get(name, "constexpr") for name in kernel.arg_names}
    assert signature.keys() == TYPES.keys() | constants.keys()
    pointers = [(i,) for i, name in enumerate(signature) if signature[name][0] == "*"]
    aligned = {pointer: [["tt.divisibility", 16]] for pointer in pointers}  # as in PyTorch
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


for capability in CAPABILITIES:
    for id_type, word in itertools.product(gather.ID_TYPES.values(), gather.WORD_TYPES.items()):
        compiled = compile_for(capability, id_type, *word)
        assert compiled.asm["cubin"]
    print(f"sm_{capability}", compiled.metadata.name)
