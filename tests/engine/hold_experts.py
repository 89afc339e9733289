# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""An offline job that answers one prompt per rank, prints its statistics as JSON, and stays.

It fetches in 'direct' mode. With 'auto' a busy machine may run steps to measure compute, and their
activations would count as memory that loading takes.
"""

import argparse
import json
import sys

KV_CACHE_BYTES = 64 << 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--ranks", type=int, required=True)
    args = parser.parse_args()
    from vllm import SamplingParams

    from vllm_dwdp import LLM

    with LLM(
        model=args.model,
        data_parallel_size=args.ranks,
        max_in_flight=1,
        enforce_eager=True,
        max_model_len=256,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        additional_config={"dwdp": {"fetch": "direct"}},
    ) as llm:
        prompts = [f"It is a truth {rank}" for rank in range(args.ranks)]
        llm.generate(prompts, SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
        print("HELD", json.dumps(llm.dwdp_stats()), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
