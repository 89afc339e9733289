# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vLLM on GPUs: two ranks' tokens equal stock vLLM's, eager and with CUDA graphs.

    python tests/gpu/vllm_e2e.py [MODEL ...]

Ranks take a GPU each where there are two, else both take GPU 0. Without MODEL: the demo model, and
one of over 1 B random parameters. Says why where it is skipped.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "bench"))
from random_moe import DEMO_MODEL, RandomMoe  # noqa: E402

PROMPTS = ("It is a truth", "And the LORD said unto", "Emma was", "In the beginning", "My dear")
KV_CACHE_BYTES = 1 << 30
MEMORY_SHARE = 0.4
"""Two ranks of one GPU would each take what the other has left free, and ask for nearly all."""

CAPTURED = [1, 2]
US_PER_TOKEN = 500.0
BREAK_EVEN_TOKENS = 2
"""For 'auto': as long as two tokens take, a layer's copy takes; prompts prefetch, decodes don't."""

LARGE = RandomMoe(num_layers=12, num_experts=32, hidden_size=1024, expert_size=1024)


def reason_to_skip():
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    import torch

    if not torch.cuda.is_available():
        return "there is no GPU"
    return None


def generate(args):
    """Child: the outputs of one engine, or of one rank, and its counters, to a file."""
    from vllm import LLM, SamplingParams

    options = {
        "model": args.model,
        "max_model_len": 256,
        "enforce_eager": args.eager,
        "compilation_config": {"cudagraph_capture_sizes": CAPTURED},
        "kv_cache_memory_bytes": KV_CACHE_BYTES,
        "gpu_memory_utilization": MEMORY_SHARE,
        "seed": 0,
    }
    if args.fetch is None:
        options["moe_backend"] = "triton"  # as dwdp chooses by itself
    else:
        options["distributed_executor_backend"] = "dwdp"
        options["additional_config"] = {"dwdp": {"fetch": args.fetch, **figures(args.model)}}
    llm = LLM(**options)
    params = SamplingParams(temperature=0, max_tokens=24)
    outputs = [llm.generate([p], params, use_tqdm=False)[0].outputs[0] for p in PROMPTS]
    found = {"tokens": [list(output.token_ids) for output in outputs]}
    if args.fetch is not None:
        (found["stats"],) = llm.collective_rpc("dwdp_stats")
    Path(args.out).write_text(json.dumps(found))


def figures(model):
    config = json.loads((Path(model) / "config.json").read_text())
    row_bytes = 3 * 2 * config["hidden_size"] * config["moe_intermediate_size"]
    missing_bytes = config["num_experts"] // 2 * row_bytes
    copy_us = BREAK_EVEN_TOKENS * US_PER_TOKEN
    return {"link_gb_per_s": missing_bytes / copy_us / 1e3, "compute_us_per_token": US_PER_TOKEN}


def run(model, *, eager, fetch=None):
    """What stock vLLM found, or each rank where a fetch mode is named."""
    num_ranks = 1 if fetch is None else 2
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / f"{rank}.json" for rank in range(num_ranks)]
        processes = []
        try:
            for rank, out in enumerate(outs):
                command = [sys.executable, __file__, "--child", "--model", str(model)]
                command += ["--out", str(out)]
                command += ["--eager"] if eager else []
                command += ["--fetch", fetch] if fetch else []
                environment = os.environ | (of_rank(rank) if fetch else {})
                processes.append(subprocess.Popen(command, env=environment))
            for process in processes:
                assert process.wait(timeout=600) == 0, f"{command} ended with an error"
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [json.loads(out.read_text()) for out in outs]


def of_rank(rank):
    import torch

    return {
        "VLLM_DP_RANK": str(rank),
        "VLLM_DP_RANK_LOCAL": str(rank % torch.cuda.device_count()),
        "VLLM_DP_SIZE": "2",
        "VLLM_DP_MASTER_IP": "127.0.0.1",
        "VLLM_DP_MASTER_PORT": "29611",
    }


def compare(model):
    for eager in (True, False):
        (stock,) = run(model, eager=eager)
        for fetch in ("direct", "prefetch", "selective", "auto"):
            ranks = run(model, eager=eager, fetch=fetch)
            are_equal = [rank["tokens"] == stock["tokens"] for rank in ranks]
            fetched = [rank["stats"]["bytes_fetched"] for rank in ranks]
            case = {"model": Path(model).name, "eager": eager, "fetch": fetch}
            print(json.dumps({**case, "ranks_equal_stock": are_equal, "bytes": fetched}))
            assert all(are_equal)
            if fetch != "direct":
                mode = "prefetch" if fetch == "auto" else fetch
                assert all(sum(by_mode[mode]) > 0 for by_mode in fetched), fetched


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--eager", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--fetch", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return generate(args)
    if reason := reason_to_skip():
        return print(f"skipped: {reason}")
    for model in args.models or [str(DEMO_MODEL)]:
        compare(model)
    if not args.models:
        with tempfile.TemporaryDirectory() as folder:
            compare(LARGE.write(Path(folder) / "random"))


if __name__ == "__main__":
    main()
