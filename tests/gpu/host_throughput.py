# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Prompt tokens a second of one GPU whose experts lie in part in host memory, beside other ways.

    python tests/gpu/host_throughput.py [--results RESULTS.md] [--seconds N]

* Everything in GPU memory, by stock vLLM: what a GPU of more memory would give.
* A part of each layer's experts in host memory, by dwdp.
* All experts of a part of the layers in host memory, by vLLM's own prefetch offloader.

Each in an engine of its own, one after the other, so that figures are of one GPU. The model has
random weights. vLLM is the installed one, or what pack_vllm.py packed.
"""

import argparse
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
"""A sixth of the layers and half of the experts of Qwen3-30B-A3B, of its sizes."""

STEP_TOKENS, PROMPT_TOKENS = 16_384, 1_024


def with_dwdp(one_of):
    """One of so many experts of every layer in host memory."""
    config = {"host_experts": MODEL.num_experts // one_of}
    return {"distributed_executor_backend": "dwdp", "additional_config": {"dwdp": config}}


def with_offloader(one_of):
    """The experts of one of so many layers in host memory."""
    return {
        "offload_backend": "prefetch",
        "offload_group_size": one_of,
        "offload_num_in_group": 1,
        "offload_prefetch_step": 1,
        "offload_params": ["w13_weight", "w2_weight"],
    }


WAYS = {
    "everything in GPU memory, stock vLLM": {},
    "a quarter of the experts in host memory, dwdp": with_dwdp(4),
    "a quarter of the experts in host memory, vLLM's offloader": with_offloader(4),
    "half of the experts in host memory, dwdp": with_dwdp(2),
    "half of the experts in host memory, vLLM's offloader": with_offloader(2),
}


def options(model):
    """Of every engine."""
    return packed_vllm.settings() | {
        "model": str(model),
        "max_model_len": PROMPT_TOKENS + 64,
        "max_num_batched_tokens": STEP_TOKENS,
        "max_num_seqs": STEP_TOKENS // PROMPT_TOKENS,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "moe_backend": "triton",
        "kv_cache_memory_bytes": 2 << 30,
        "worker_extension_cls": "mode_switch.MemoryUse",
    }


def run(way, model, limit_s, log):
    """Seconds of each round of an engine, and what dwdp says of itself."""
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "options": options(model) | WAYS[way],
            "out": f"{folder}/out.json",
            "prompt_tokens": PROMPT_TOKENS,
            "step_tokens": STEP_TOKENS,
        }
        with Child(job, packed_vllm.environment(), log, script=CHILD) as child:
            return child.result(time.monotonic() + limit_s)


def figures_of(way, model, limit_s, log):
    found = run(way, model, limit_s, log)
    tokens_per_s = STEP_TOKENS / statistics.median(found["seconds"])
    return {
        "prompt_tokens_per_s": round(tokens_per_s),
        "rounds": len(found["seconds"]),
        "gpu_memory_of_weights_gib": found["weights_gib"],
    } | {name: found[name] for name in ("fetch", "link_gb_per_s", "exposed_s") if name in found}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, default=Path(os.devnull))
    parser.add_argument("--logs", type=Path, help="a folder to keep the engines' logs in")
    parser.add_argument("--seconds", type=float, default=170.0, help="for all of it")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as folder, args.results.open("a") as results:
        results.write("# Experts in host memory beside other ways\n\n")
        results.write(f"A model of random weights: {json.dumps(MODEL.__dict__)}.\n\n")
        model = MODEL.write(Path(folder) / "random")
        statuses = set()
        for number, way in enumerate(WAYS):
            log = (args.logs or Path(folder)) / f"throughput-{number}.log"
            left = deadline - time.monotonic()
            found = outcome_of(way, functools.partial(figures_of, way, model, left, log))
            results.write(found.section())
            results.flush()
            print(found.sentence, flush=True)
            statuses.add(found.status)
    sys.exit(Status.ERROR in statuses)


if __name__ == "__main__":
    main()
