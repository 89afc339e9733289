# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vLLM on GPUs: two ranks' tokens equal stock vLLM's, eager and with CUDA graphs.

    python tests/gpu/vllm_e2e.py [MODEL ...]

Ranks take a GPU each where there are two, else both take GPU 0 with a part of its memory. Without
MODEL: the demo model, and one of over 1 B random parameters. Says why where it is skipped.
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
LARGE = RandomMoe(num_layers=12, num_experts=32, hidden_size=1024, expert_size=1024)


def reason_to_skip():
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    import torch

    if not torch.cuda.is_available():
        return "there is no GPU"
    return None


def generate(args):
    """Child: the outputs of one engine, or of one rank, as JSON on the last line."""
    options = {
        "model": args.model,
        "max_model_len": 256,
        "enforce_eager": args.eager,
        "gpu_memory_utilization": 0.3,
        "seed": 0,
    }
    from vllm import LLM, SamplingParams

    if args.rank is not None:
        options["distributed_executor_backend"] = "dwdp"
        options["additional_config"] = {"dwdp": {"fetch": args.fetch}}
    llm = LLM(**options)
    params = SamplingParams(temperature=0, max_tokens=24, logprobs=1)
    tokens = [llm.generate([p], params, use_tqdm=False)[0].outputs[0].token_ids for p in PROMPTS]
    print(json.dumps([list(t) for t in tokens]))


def run(model, *, eager, fetch=None):
    """Outputs of stock vLLM, or of every rank where a fetch mode is named."""
    import torch

    command = [sys.executable, __file__, "--child", "--model", str(model)]
    command += ["--eager"] if eager else []
    if fetch is None:
        return [_last_line(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))]
    ranks = []
    for rank in range(2):
        environment = {
            **os.environ,
            "VLLM_DP_RANK": str(rank),
            "VLLM_DP_RANK_LOCAL": str(rank % torch.cuda.device_count()),
            "VLLM_DP_SIZE": "2",
            "VLLM_DP_MASTER_IP": "127.0.0.1",
            "VLLM_DP_MASTER_PORT": "29611",
        }
        of_rank = [*command, "--rank", str(rank), "--fetch", fetch]
        ranks.append(subprocess.Popen(of_rank, stdout=subprocess.PIPE, text=True, env=environment))
    return [_last_line(rank) for rank in ranks]


def _last_line(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]
    return json.loads(output.strip().splitlines()[-1])


def compare(model):
    for eager in (True, False):
        (stock,) = run(model, eager=eager)
        for fetch in ("direct", "prefetch", "selective", "auto"):
            ranks = run(model, eager=eager, fetch=fetch)
            are_equal = [tokens == stock for tokens in ranks]
            figures = {"model": Path(model).name, "eager": eager, "fetch": fetch}
            print(json.dumps({**figures, "ranks_equal_stock": are_equal}), flush=True)
            assert all(are_equal)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--eager", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
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
