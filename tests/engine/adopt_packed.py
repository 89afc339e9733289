# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Loads rank 0's experts of a packed checkpoint, has vLLM process them, adopts them, and stays.

It prints READY and waits for a line before it begins. When it has adopted them, it prints ADOPTED
with sizes and with the times at which vLLM had loaded and processed them.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import pytest
from layer_group import distributed_by_one
from model_loading import load_rank
from packed_layers import force_cpus_kernel, process

from vllm_dwdp.device import HostMemory
from vllm_dwdp.engine.moe.adoption import adopt, layer_layout
from vllm_dwdp.layout.rank_layout import RankLayout


def main() -> None:
    folder, num_ranks = Path(sys.argv[1]), int(sys.argv[2])
    with (
        tempfile.TemporaryDirectory() as store,
        pytest.MonkeyPatch.context() as patch,
        distributed_by_one(Path(store) / "store"),
    ):
        force_cpus_kernel(patch)
        print("READY", flush=True)
        sys.stdin.readline()
        layers = load_rank(folder, 0, num_ranks).layers
        loaded_s = time.monotonic()
        share_bytes = process(layers)
        memory = HostMemory(0)
        memory.give_back()  # what processing has freed
        processed_s = time.monotonic()
        layouts = tuple(layer_layout(layer, memory.driver.granularity) for layer in layers)
        experts = adopt(memory, layers, RankLayout(layouts, 0))
        found = {"layer_bytes": share_bytes // experts.layout.num_layers}
        found |= {"share_bytes": share_bytes, "loaded_s": loaded_s, "processed_s": processed_s}
        print("ADOPTED", json.dumps(found), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
