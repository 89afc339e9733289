# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures the prompt tokens a second of one GPU with a part of the experts in host memory.

    python tests/gpu/host_throughput.py [--results RESULTS.md] [--seconds N]

It compares three ways:

* Stock vLLM with everything in GPU memory, as on a GPU with more memory.
* dwdp with a part of each layer's experts in host memory.
* vLLM's own prefetch offloader with all experts of a part of the layers in host memory.

Each way has an engine of its own. The engines run one after the other on the same GPU; all import
vLLM while the model, of random weights, is written. vLLM is the installed one, or the one that
pack_vllm.py packed.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "bench")]
import packed_vllm  # noqa: E402
from random_moe import RandomMoe  # noqa: E402
from report import Status, outcome_of  # noqa: E402
from vllm_e2e import Child  # noqa: E402

CHILD = Path(__file__).with_name("throughput_child.py")
MODEL = RandomMoe(
    num_layers=8,
    num_experts=64,
    top_k=8,
    hidden_size=2048,
    expert_size=768,
    num_heads=16,
    num_kv_heads=4,
    head_dim=128,
)
"""Qwen3-30B-A3B with a sixth of its layers and half of its experts."""

STEP_TOKENS, PROMPT_TOKENS = 16_384, 1_024


def with_dwdp(one_of):
    """Options with one of `one_of` experts of each layer in host memory."""
    config = {"host_experts": MODEL.num_experts // one_of}
    return {"distributed_executor_backend": "dwdp", "additional_config": {"dwdp": config}}


def with_offloader(one_of):
    """Options with all experts of one of `one_of` layers in host memory."""
    return {
        "offload_backend": "prefetch",
        "offload_group_size": one_of,
        "offload_num_in_group": 1,
        "offload_prefetch_step": 1,
        "offload_params": ["w13_weight", "w2_weight"],
    }


OF_DWDP = ("fetch", "link_gb_per_s", "steps", "exposed_s")
WAYS = {
    "everything in GPU memory, stock vLLM": {},
    "a quarter of the experts in host memory, dwdp": with_dwdp(4),
    "a quarter of the experts in host memory, vLLM's offloader": with_offloader(4),
    "half of the experts in host memory, dwdp": with_dwdp(2),
    "half of the experts in host memory, vLLM's offloader": with_offloader(2),
}


def options(model):
    """The options that all engines have."""
    return packed_vllm.settings() | {
        "model": str(model),
        "max_model_len": PROMPT_TOKENS + 64,
        "max_num_batched_tokens": STEP_TOKENS,
        "max_num_seqs": STEP_TOKENS // PROMPT_TOKENS,
        "distributed_executor_backend": "mp",  # a worker process, as with dwdp
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "moe_backend": "triton",
        "kv_cache_memory_bytes": 2 << 30,
        "worker_extension_cls": "mode_switch.MemoryUse",
    }


class Way:
    """One way, in an engine that waits for its turn."""

    def __init__(self, name, number, model, folder, logs):
        self.name = name
        self._turn = folder / f"{number}.turn"
        self._job = {
            "options": options(model) | WAYS[name],
            "out": str(folder / f"{number}.json"),
            "turn": str(self._turn),
            "prompt_tokens": PROMPT_TOKENS,
            "step_tokens": STEP_TOKENS,
        }
        self._log = logs / f"throughput-{number}.log"

    def start(self):
        """Start the engine's process; returns it as a context that ends it."""
        self._child = Child(self._job, packed_vllm.environment(), self._log, script=CHILD)
        return self._child

    def figures(self, limit_s):
        self._turn.touch()
        found = self._child.result(time.monotonic() + limit_s)
        return {
            "prompt_tokens_per_s": round(found["tokens"] / statistics.median(found["seconds"])),
            "rounds": len(found["seconds"]),
            "gpu_memory_of_weights_gib": found["weights_gib"],
        } | {name: found[name] for name in OF_DWDP if name in found}


def measure(ways, deadline, results):
    """Let the engines run in turn; writes and yields each outcome."""
    for way in ways:
        left = deadline - time.monotonic()
        outcome = outcome_of(way.name, functools.partial(way.figures, left))
        results.write(outcome.section())
        results.flush()
        print(outcome.sentence, flush=True)
        yield outcome


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, default=Path(os.devnull))
    parser.add_argument("--logs", type=Path, help="a folder to keep the engines' logs in")
    parser.add_argument("--seconds", type=float, default=170.0, help="for all of it")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        results = stack.enter_context(args.results.open("a"))
        results.write("# Experts in host memory beside other ways\n\n")
        results.write(f"A model of random weights: {json.dumps(MODEL.__dict__)}.\n\n")
        model, logs = folder / "random", args.logs or folder
        ways = [Way(name, number, model, folder, logs) for number, name in enumerate(WAYS)]
        for way in ways:
            stack.enter_context(way.start())
        MODEL.write(model)
        statuses = {outcome.status for outcome in measure(ways, deadline, results)}
    sys.exit(Status.ERROR in statuses)


if __name__ == "__main__":
    main()
