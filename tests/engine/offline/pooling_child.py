# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Writes what a pooling model gives for some prompts as JSON: embeddings and scores, or classes.

Arguments: the model, "embed" or "classify", the number of ranks (0: stock vLLM), the file.
"""

import json
import sys
from pathlib import Path

PROMPTS = [f"{start} and it came to pass {n}" for n in range(9) for start in ("Emma", "The LORD")]


def main() -> None:
    model, convert, ranks, out = sys.argv[1:]
    options = {
        "model": model,
        "runner": "pooling",
        "convert": convert,
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 1,  # prompts of a batch may be rounded otherwise
    }
    if int(ranks):
        from vllm_dwdp import LLM

        with LLM(data_parallel_size=int(ranks), **options) as llm:
            found = {**outputs(llm, convert), "stats": llm.dwdp_stats()}
    else:
        from vllm import LLM

        found = outputs(LLM(**options), convert)
    Path(out).write_text(json.dumps(found))


def outputs(llm, convert: str) -> dict:
    if convert == "classify":
        classes = [one.outputs.probs for one in llm.classify(PROMPTS, use_tqdm=False)]
        return {"classify": classes}
    embeddings = [one.outputs.embedding for one in llm.embed(PROMPTS, use_tqdm=False)]
    encoded = llm.encode(PROMPTS, pooling_task="embed", use_tqdm=False)
    pairs = llm.score(PROMPTS[:4], PROMPTS[4:8], use_tqdm=False)
    query = llm.score("In the beginning", PROMPTS, use_tqdm=False)
    return {
        "embed": embeddings,
        "encode": [one.outputs.data.tolist() for one in encoded],
        "score": [one.outputs.score for one in (*pairs, *query)],
    }


if __name__ == "__main__":
    main()
