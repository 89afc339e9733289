# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One vLLM engine of vllm_e2e.py, which generates greedy tokens in each fetch mode.

The argument is a job in JSON: {"options": of vllm.LLM, "prompts", "modes", "is_dwdp", "out"}. The
mode null is the one with which the engine started. Tokens and dwdp's statistics go to file "out".
"""

import json
import sys
import time
from pathlib import Path

MAX_TOKENS = 24


def main():
    job = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams

    start = time.perf_counter()
    llm = LLM(**job["options"])
    seconds = {"start": round(time.perf_counter() - start, 1)}
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    runs = []
    for mode in job["modes"]:
        if mode is not None:
            llm.collective_rpc("switch_mode", args=(mode,))
        start = time.perf_counter()
        outputs = [llm.generate([p], params, use_tqdm=False)[0] for p in job["prompts"]]
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        run = {"mode": mode, "tokens": tokens, "seconds": round(time.perf_counter() - start, 2)}
        if job["is_dwdp"]:
            (run["stats"],) = llm.collective_rpc("dwdp_stats")
        runs.append(run)
    Path(job["out"]).write_text(json.dumps({"seconds": seconds, "runs": runs}))


if __name__ == "__main__":
    main()
