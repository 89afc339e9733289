# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One vLLM engine of host_throughput.py, which times rounds of long prompts.

It imports vLLM at once, but waits with the engine until the file "turn" of its job exists.
"""

import json
import random
import sys
import time
from pathlib import Path

NUM_WARM, NUM_ROUNDS = 1, 3
STEPS_OF_A_ROUND = 24
"""Full steps that the prompts of a round would fill. The first step is smaller, since it begins
with the first prompt, and the last step runs the rest."""


def wait_for(turn):
    while not turn.exists():
        time.sleep(0.05)


def make_prompts(rng, job):
    number = STEPS_OF_A_ROUND * job["step_tokens"] // job["prompt_tokens"]
    return [
        {"prompt_token_ids": [rng.randrange(10, 4000) for _ in range(job["prompt_tokens"])]}
        for _ in range(number)
    ]


def main():
    job = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams

    wait_for(Path(job["turn"]))
    llm = LLM(**job["options"])
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    rng = random.Random(0)
    seconds = []
    for _ in range(NUM_WARM + NUM_ROUNDS):
        prompts = make_prompts(rng, job)
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
    found = {
        "seconds": seconds[NUM_WARM:],
        "tokens": sum(len(p["prompt_token_ids"]) for p in prompts),
    }
    found["weights_gib"] = weights_gib(llm)
    if "additional_config" in job["options"]:
        (stats,) = llm.collective_rpc("dwdp_stats")
        found["fetch"] = stats["fetch"]
        found["link_gb_per_s"] = stats.get("link_gb_per_s")
        found["steps"] = {mode: count for mode, count in stats["steps"].items() if count}
        found["exposed_s"] = round(sum(stats["exposed_seconds"]), 3)
    Path(job["out"]).write_text(json.dumps(found))


def weights_gib(llm):
    """GiB of GPU memory in use after all rounds, without the KV cache."""
    (found,) = llm.collective_rpc("gpu_bytes")
    return round((found - llm.llm_engine.vllm_config.cache_config.kv_cache_memory_bytes) / 2**30, 2)


if __name__ == "__main__":
    main()
