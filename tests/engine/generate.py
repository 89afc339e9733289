# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Writes greedy tokens and log-probabilities of 64 prompts as JSON; prompts run alone on a rank."""

import argparse
import json
import time
from pathlib import Path

STARTS = ("It is a truth", "And the LORD said", "Emma was", "In the beginning", "My dear Miss")
MIDDLES = (
    "",
    " that",
    " of the",
    " unto",
    " not",
    " with a",
    " but",
    " she",
    " he",
    " all",
    " her",
)
WORDS = " and it came to pass in those days that they went up out of the land"


def prompts() -> list[str]:
    made = [start + middle for start in STARTS for middle in MIDDLES]
    return [*made, *(STARTS[0] + WORDS * n for n in range(1, 10))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--linger", type=float, default=0, help="seconds before ranks are ended")
    parser.add_argument("--config", type=json.loads, default={}, help="the dwdp section")
    parser.add_argument("--options", type=json.loads, default={}, help="of vllm.LLM")
    args = parser.parse_args()
    options = {"model": args.model, "max_model_len": 512, "enforce_eager": args.eager}
    options |= args.options
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=16, logprobs=1)
    stats = []
    if args.stock:
        from vllm import LLM

        llm = LLM(**options)
        outputs = [llm.generate([p], params, use_tqdm=False)[0] for p in prompts()]
    else:
        from vllm_dwdp import LLM

        options["additional_config"] = {"dwdp": args.config}
        with LLM(data_parallel_size=args.ranks, max_in_flight=1, **options) as llm:
            outputs = llm.generate(prompts(), params, use_tqdm=False)
            stats = llm.dwdp_stats()
            time.sleep(args.linger)
    result = {"stats": stats, "outputs": [describe(o) for o in outputs]}
    args.out.write_text(json.dumps(result))


def describe(output) -> dict:
    first = output.outputs[0]
    chosen = zip(first.token_ids, first.logprobs, strict=True)
    return {
        "prompt": output.prompt,
        "text": first.text,
        "tokens": list(first.token_ids),
        "logprobs": [steps[token].logprob for token, steps in chosen],
    }


if __name__ == "__main__":
    main()
