# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank reads and holds hardly more bytes of experts than the checkpoint has of its own experts.

The checkpoints fuse all experts of a layer in one tensor, or pack several weights of an expert in
one number. The layers of packed ones get vLLM's kernel for CPUs, which it chooses only on some.
"""

import os

import pytest
from model_loading import NUMBERED, load_rank
from moe_checkpoints import NUM_EXPERTS, write_family, write_packed
from packed_layers import force_cpus_kernel, process
from safetensors.torch import load_file

from vllm_dwdp.device import HostMemory
from vllm_dwdp.engine.moe.adoption import adopt, layer_layout
from vllm_dwdp.layout.rank_layout import RankLayout

pytestmark = pytest.mark.usefixtures("one_process_group", "a_cpus_kernel")

NUM_RANKS = 2
MOST = 1.02
SIZES = {"hidden_size": 512, "num_attention_heads": 16}
OF_EXPERTS = {"moe_intermediate_size": 256}


@pytest.fixture
def a_cpus_kernel(monkeypatch):
    force_cpus_kernel(monkeypatch)


def write_fused(folder):
    return write_family(folder, "granitemoe", is_fused=True, intermediate_size=256, **SIZES)


WRITERS = {
    "fused": write_fused,
    "awq": lambda folder: write_packed(folder, "awq", **SIZES, **OF_EXPERTS),
    "gptq": lambda folder: write_packed(folder, "gptq", **SIZES, **OF_EXPERTS),
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
