# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank reads and holds hardly more bytes of experts than the checkpoint has of its own experts.

The checkpoints fuse all experts of a layer in one tensor, or pack several weights of an expert in
one number. The layers of packed ones get vLLM's kernel for CPUs, which it chooses only on some.
"""

import json
import os

import pytest
import torch
from model_loading import NUMBERED, load_rank
from moe_checkpoints import NUM_EXPERTS, change, write_family
from safetensors.torch import load_file
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import (
    WNA16MoEBackend,
    backend_to_kernel_cls,
)
from vllm.model_executor.layers.quantization import auto_awq, auto_gptq

from vllm_dwdp.device import HostMemory
from vllm_dwdp.engine.moe.adoption import adopt, layer_layout
from vllm_dwdp.layout.rank_layout import RankLayout

pytestmark = pytest.mark.usefixtures("one_process_group", "a_cpus_kernel")

NUM_RANKS, GROUP, IN_INT32 = 2, 128, 8
MOST = 1.02
SIZES = {"hidden_size": 512, "num_attention_heads": 16}
DENSE = ["self_attn", "lm_head", "mlp.gate"]
METHODS = {
    "awq": {"zero_point": True, "modules_to_not_convert": DENSE},
    "gptq": {"desc_act": False, "sym": True, "dynamic": {"-:.*(self_attn|lm_head|mlp.gate$)": {}}},
}


@pytest.fixture
def a_cpus_kernel(monkeypatch):
    (kernel,) = backend_to_kernel_cls(WNA16MoEBackend.CPU)
    for method in (auto_awq, auto_gptq):
        choice = WNA16MoEBackend.CPU, kernel
        monkeypatch.setattr(method, "select_wna16_moe_backend", lambda *_, c=choice, **__: c)


def write_fused(folder):
    return write_family(folder, "granitemoe", is_fused=True, intermediate_size=256, **SIZES)


def write_packed(folder, method):
    """Write a Qwen3-MoE checkpoint whose experts are random numbers of four bits."""

    def pack(tensors):
        for name in [name for name in tensors if NUMBERED.search(name)]:
            num_outputs, num_inputs = tensors.pop(name).shape
            made = packed(method, num_outputs, num_inputs)
            tensors.update({name.replace("weight", kind): tensor for kind, tensor in made.items()})

    write_family(folder, "qwen3_moe", is_fused=False, moe_intermediate_size=256, **SIZES)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": GROUP}
    config["quantization_config"] |= METHODS[method]
    (folder / "config.json").write_text(json.dumps(config))
    return change(folder, pack)


def packed(method, num_outputs, num_inputs):
    """The tensors of one matrix, by the ends of their names in a checkpoint."""
    in_outputs = (num_inputs, num_outputs // IN_INT32)
    in_inputs = (num_inputs // IN_INT32, num_outputs)
    num_groups = num_inputs // GROUP
    integers = {
        "qweight": in_outputs if method == "awq" else in_inputs,
        "qzeros": (num_groups, num_outputs // IN_INT32),
    }
    made = {kind: torch.randint(1 << 30, shape).int() for kind, shape in integers.items()}
    if method == "gptq":
        made["g_idx"] = torch.arange(num_inputs, dtype=torch.int32) // GROUP
    return made | {"scales": torch.rand(num_groups, num_outputs).bfloat16()}


WRITERS = {
    "fused": write_fused,
    "awq": lambda folder: write_packed(folder, "awq"),
    "gptq": lambda folder: write_packed(folder, "gptq"),
}


@pytest.fixture(scope="module", params=WRITERS)
def checkpoint(request, tmp_path_factory):
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param) / "model")


def share_bytes(folder, own):
    """Bytes that the checkpoint has of these experts, of all layers."""
    (file,) = folder.glob("*.safetensors")
    found = 0
    for name, tensor in load_file(file).items():
        if number := NUMBERED.search(name):
            found += tensor.nbytes if int(number[1]) in own else 0
        elif tensor.dim() == 3 and len(tensor) == NUM_EXPERTS:
            found += tensor[own.start : own.stop].nbytes
    return found


def file_bytes(rank):
    """Allocated bytes of the open memory files in which a rank has its experts, by inode."""
    found = {}
    for entry in os.scandir("/proc/self/fd"):
        try:
            if os.readlink(entry).startswith(f"/memfd:dwdp-rank{rank}"):
                status = os.stat(entry)
                found[status.st_ino] = status.st_blocks * 512
        except FileNotFoundError:
            continue
    return found


def process(layers):
    """Let vLLM process the layers; returns the bytes of the rank's experts, as its kernel has them.

    vLLM's kernel for CPUs keeps packed weights and zero points in more bytes than a checkpoint.
    """
    with set_current_vllm_config(VllmConfig()):
        for layer in layers:
            layer.quant_method.process_weights_after_loading(layer)
    tensors = [(layer, rows) for layer in layers for rows in layer.expert_rows()]
    return sum(rows.row_bytes * len(layer.local_experts) for layer, rows in tensors)


@pytest.mark.parametrize("rank", range(NUM_RANKS))
def test_a_rank_reads_and_holds_its_share(checkpoint, rank):
    loaded = load_rank(checkpoint, rank, NUM_RANKS)
    (own,) = set(loaded.local_experts.values())
    share = share_bytes(checkpoint, own)
    read, touched = loaded.read_count.num_expert_bytes, loaded.num_touched_bytes
    print(f"of {share} bytes read {read / share:.4f}, touched {touched / share:.4f}")
    assert 0.95 <= read / share <= MOST  # vLLM skips the order of inputs where it isn't needed
    assert 0.95 <= touched / share <= MOST

    processed = process(loaded.layers)
    memory, before = HostMemory(rank), file_bytes(rank)
    layouts = tuple(layer_layout(layer, memory.driver.granularity) for layer in loaded.layers)
    experts = adopt(memory, loaded.layers, RankLayout(layouts, rank))
    in_files = sum(n for inode, n in file_bytes(rank).items() if inode not in before)
    kept = sum(p.nbytes for layer in loaded.layers for p in layer.parameters())
    print(f"of {processed} bytes held {(in_files + kept) / processed:.4f}, {kept} in no file")
    assert 1 <= (in_files + kept) / processed <= MOST
    del experts  # until here: its files are open
