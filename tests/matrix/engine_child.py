# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One start of the matrix: generates greedy tokens with stock vLLM or with dwdp's ranks.

The argument is a job in JSON: {"options": of the LLM class, "ranks", "out"}; "ranks" is null for
stock vLLM. What was found goes to file "out": {"outputs", "accepted", "stats"} or {"error"}.
"""

import itertools
import json
import sys
import traceback
from pathlib import Path

PROMPTS = (
    "It is a truth",
    "And the LORD said unto",
    "Emma was",
    "In the beginning",
    "My dear Miss",
    "And it came to pass in those days" + " that they went up out of the land" * 12,
)
MAX_TOKENS, NUM_LOGPROBS = 16, 5


def main() -> None:
    job = json.loads(sys.argv[1])
    try:
        found = stock(job["options"]) if job["ranks"] is None else ranks(**job)
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    Path(job["out"]).write_text(json.dumps(found))


def stock(options: dict) -> dict:
    from vllm import LLM

    llm = LLM(**options)
    outputs = [llm.generate([p], params(), use_tqdm=False)[0] for p in PROMPTS]
    return {
        "outputs": [described(output) for output in outputs],
        "accepted": num_accepted([llm.get_metrics()]),
    }


def ranks(options: dict, ranks: int, out: str) -> dict:
    """Prompts run alone on a rank, as they do in `stock`: tokens of a batch may differ."""
    from vllm_dwdp import LLM

    with LLM(data_parallel_size=ranks, max_in_flight=1, **options) as llm:
        outputs = llm.generate(PROMPTS, params(), use_tqdm=False)
        return {
            "outputs": [described(output) for output in outputs],
            "accepted": num_accepted(llm.get_metrics()),
            "stats": llm.dwdp_stats(),
        }


def num_accepted(metrics: list[list]) -> int:
    """How many drafted tokens all engines together have accepted. metrics: of each engine."""
    found = itertools.chain.from_iterable(metrics)
    return sum(one.value for one in found if one.name == "vllm:spec_decode_num_accepted_tokens")


def params():
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0, max_tokens=MAX_TOKENS, logprobs=NUM_LOGPROBS, ignore_eos=True
    )


def described(output) -> dict:
    """Tokens, and for each step the log-probabilities of the likeliest tokens by their ids."""
    (first,) = output.outputs
    steps = [{str(token): at.logprob for token, at in step.items()} for step in first.logprobs]
    return {"tokens": list(first.token_ids), "logprobs": steps}


if __name__ == "__main__":
    main()
