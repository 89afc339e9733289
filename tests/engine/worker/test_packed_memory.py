# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Loading and adopting quantised experts take a rank's share and one layer more, as others do.

Between the two vLLM processes the layers, and takes what it takes without dwdp, too: its kernel for
CPUs unpacks a layer of four bits to integers. That part isn't dwdp's and isn't bounded here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from moe_checkpoints import write_packed
from support.memory_samples import Sampler

pytestmark = pytest.mark.whole

ENGINE = Path(__file__).parents[1]
SIZES = {
    "hidden_size": 1024,
    "num_attention_heads": 32,
    "moe_intermediate_size": 1024,
    "num_experts": 16,
    "num_hidden_layers": 4,
}
SLACK_BYTES = 4 << 20


def adopt_packed(folder):
    """Samples of a process that adopts half of the experts, and what it printed."""
    command = [sys.executable, str(ENGINE / "adopt_packed.py"), str(folder), "2"]
    environment = os.environ | {"PYTHONPATH": f"{ENGINE.parent}:{ENGINE}"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as child:
        sampler = Sampler()
        try:
            wait_for(child.stdout, "READY")
            sampler.watch(child.pid)
            sampler.start()
            print(file=child.stdin, flush=True)
            found = json.loads(wait_for(child.stdout, "ADOPTED"))
        finally:
            sampler.stop()
            child.communicate("\n", timeout=60)
    return sampler.samples[child.pid], found


def wait_for(lines, word):
    for line in lines:
        if line.startswith(word):
            return line.removeprefix(word)
    raise AssertionError(f"the process ended before it printed {word}")


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_packed_experts_need_the_share_and_one_layer(tmp_path, method):
    samples, found = adopt_packed(write_packed(tmp_path / "model", method, **SIZES))
    share, layer = found["share_bytes"], found["layer_bytes"]
    loading = [s.bytes_of(0) for s in samples if s.at_s <= found["loaded_s"]]
    adopting = [s for s in samples if s.at_s > found["processed_s"]]
    settled = adopting[-1].anonymous_bytes + share  # the last file may have grown since it was read
    over = max(loading) - loading[-1], max(s.bytes_of(0) for s in adopting) - settled
    print(f"over the share: {[n >> 20 for n in over]} MiB, a layer is {layer >> 20} MiB")
    assert max(over) <= layer + SLACK_BYTES
    given_back = adopting[0].anonymous_bytes - adopting[-1].anonymous_bytes
    assert given_back >= share - layer - SLACK_BYTES, "the originals are given back"
