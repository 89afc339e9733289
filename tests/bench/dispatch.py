# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares how vllm_dwdp.LLM gives prompts to ranks with giving them in turn (round robin).

    python tests/bench/dispatch.py [--prompts 1000] [--rounds 7] [--seed 0]

The lengths of the prompts have a heavy tail (Pareto). Two ranks of the demo model prefill them, one
way after the other in each round, with new lengths. For each way it prints the medians of the total
time, and of the time that the last rank worked alone. The last line of the output is JSON.
"""

import argparse
import contextlib
import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm import SamplingParams

from vllm_dwdp import LLM
from vllm_dwdp.offline.rank_pool import RankPool

MODEL = Path(__file__).parents[2] / "examples" / "demo_model"
SHORTEST, LONGEST, TAIL = 32, 1900, 0.9


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Within this context prompt i goes to rank i modulo the number of ranks, at once."""
    stock = RankPool._give

    def give(pool: RankPool, kind: str, items: Any) -> bool:
        if kind != "run":
            return stock(pool, kind, items)
        for index, item in enumerate(items._items):
            rank = pool._ranks[index % pool.num_ranks]
            if index in items._waiting:
                rank.send_items(kind, [(items._first_id + index, item)])
        items._waiting.clear()
        return False

    RankPool._give = give
    try:
        yield
    finally:
        RankPool._give = stock


def measure(llm: LLM, prompts: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds of a call, and from the end of the first rank's work to the end of the last."""
    pool, ended = llm._pool, {}
    wait = RankPool._wait_for_news

    def wait_and_note(self: RankPool) -> Any:
        rank, message = wait(self)
        ended[rank.index] = time.perf_counter()
        return rank, message

    pool._wait_for_news = wait_and_note.__get__(pool)
    start = time.perf_counter()
    llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)
    return time.perf_counter() - start, max(ended.values()) - min(ended.values())


def draw(num_prompts: int, draws: random.Random) -> list[dict[str, Any]]:
    lengths = [
        min(LONGEST, round(SHORTEST * draws.paretovariate(TAIL))) for _ in range(num_prompts)
    ]
    return [{"prompt_token_ids": [draws.randrange(3, 4000) for _ in range(n)]} for n in lengths]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draws = random.Random(args.seed)
    found: dict[str, list[tuple[float, float]]] = {"by tokens": [], "in turn": []}
    with LLM(
        str(MODEL), data_parallel_size=2, enforce_eager=True, enable_prefix_caching=False
    ) as llm:
        measure(llm, draw(20, draws))
        for turn in range(args.rounds):
            prompts = draw(args.prompts, draws)
            for way in sorted(found, reverse=bool(turn % 2)):
                with in_turn() if way == "in turn" else contextlib.nullcontext():
                    found[way].append(measure(llm, prompts))
    medians = {
        way: {
            "total_s": round(statistics.median(total for total, _ in times), 3),
            "alone_s": round(statistics.median(alone for _, alone in times), 3),
        }
        for way, times in found.items()
    }
    ratios = [a / b for (a, _), (b, _) in zip(found["in turn"], found["by tokens"], strict=True)]
    print(json.dumps(medians | {"in_turn_over_by_tokens": round(statistics.median(ratios), 3)}))


if __name__ == "__main__":
    main()
