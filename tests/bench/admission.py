# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares steps that prefetch over a slow link with and without dwdp.min_tokens_per_step.

    python tests/bench/admission.py [--rounds 7] [--seconds 8] [--step-ms 100]

Two pairs of ranks of the demo model, one of which holds prompts back, take turns. The link of each
rank is such that the copies of a step take --step-ms. Clients send prompts of --prompt-tokens; each
sends its next one when the last has been answered. There are just enough of them for both ranks to
fill a step that hides its copies. The last line of the output is JSON.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

MODEL = Path(__file__).parents[2] / "examples" / "demo_model"
VOCABULARY = range(3, 4000)
NUM_RANKS = 2
PREFILL = SamplingParams(max_tokens=1, temperature=0)


def make_ranks(args: argparse.Namespace, gb_per_s: float, **options: Any) -> AsyncLLM:
    """Two ranks whose every step prefetches."""
    dwdp = {"fetch": "prefetch", "link_gb_per_s": gb_per_s, **options}
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(MODEL),
            data_parallel_size=NUM_RANKS,
            distributed_executor_backend="dwdp",
            additional_config={"dwdp": dwdp},
            worker_extension_cls="slow_link.SlowLink",
            max_num_batched_tokens=args.max_tokens,
            max_num_seqs=args.max_tokens // args.prompt_tokens + 1,
            enable_prefix_caching=False,
            enforce_eager=True,
        )
    )


async def run_clients(engine: AsyncLLM, args: argparse.Namespace, number: int) -> dict[str, float]:
    """Prompts per second, the median of their times, and tokens per step, in one round."""
    seconds: list[float] = []
    draws = random.Random(number)
    end = time.perf_counter() + args.seconds
    before = await counts(engine)

    async def client(index: int) -> None:
        while (start := time.perf_counter()) < end:
            prompt = {"prompt_token_ids": draws.choices(VOCABULARY, k=args.prompt_tokens)}
            request_id = f"{index}-{start}"
            async for _ in engine.generate(prompt, PREFILL, request_id):
                pass
            seconds.append(time.perf_counter() - start)

    begin = time.perf_counter()
    await asyncio.gather(*(client(index) for index in range(number)))
    took = time.perf_counter() - begin
    steps, tokens = (b - a for a, b in zip(before, await counts(engine), strict=True))
    return {
        "prompts_per_s": len(seconds) / took,
        "median_s": statistics.median(seconds),
        "tokens_per_step": tokens / steps,
    }


async def counts(engine: AsyncLLM) -> tuple[int, int]:
    """Steps and tokens of rank 0 so far: vLLM returns the result of one rank only."""
    (stats,) = await engine.collective_rpc("dwdp_stats")
    return stats["forwards"][0], stats["tokens"][0]


def copied_bytes() -> int:
    """Bytes of the experts that a rank lacks, in bf16."""
    config = json.loads((MODEL / "config.json").read_text())
    of_expert = 3 * config["hidden_size"] * config["moe_intermediate_size"] * 2
    missing = config["num_experts"] // NUM_RANKS
    return int(config["num_hidden_layers"] * missing * of_expert)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--step-ms", type=float, default=100)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=4096)
    args = parser.parse_args()
    gb_per_s = copied_bytes() / (args.step_ms / 1e3) / 1e9
    arms = {
        "at once": make_ranks(args, gb_per_s),
        "held": make_ranks(args, gb_per_s, min_tokens_per_step="auto", max_wait_ms=args.step_ms),
    }
    for engine in arms.values():
        (copied,) = await engine.collective_rpc("slow_down", args=(gb_per_s,))
        stats = await engine.collective_rpc("dwdp_stats")
        break_even = stats[0]["break_even_tokens"]
        assert copied == copied_bytes()
        print(f"a step copies {copied / 2**20:.1f} MiB; break-even {break_even} tokens")
    number = NUM_RANKS * -(-round(1.2 * break_even) // args.prompt_tokens)
    print(f"{number} clients with prompts of {args.prompt_tokens} tokens")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for turn in range(args.rounds + 1):
        for name in sorted(arms, reverse=bool(turn % 2)):
            result = await run_clients(arms[name], args, number)
            if turn:  # the first one warms up
                found[name].append(result)
                print(name, {key: round(value, 3) for key, value in result.items()}, flush=True)
    for engine in arms.values():
        engine.shutdown()
    print(json.dumps(summary(found)))


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    medians = {
        name: {key: round(statistics.median(r[key] for r in rounds), 3) for key in rounds[0]}
        for name, rounds in found.items()
    }
    pairs = zip(found["held"], found["at once"], strict=True)
    ratios = [held["prompts_per_s"] / at_once["prompts_per_s"] for held, at_once in pairs]
    return medians | {"held_over_at_once": round(statistics.median(ratios), 3)}


if __name__ == "__main__":
    asyncio.run(main())
