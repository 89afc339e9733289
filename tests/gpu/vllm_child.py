# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One vLLM engine of vllm_e2e.py, which generates greedy tokens in each fetch mode.

The argument is a job in JSON: {"options": of vllm.LLM, "prompts", "modes", "is_dwdp",
"recorded_steps", "out"}. The mode null is the one with which the engine started. With recorded
steps each mode runs once more while so many steps are recorded. Tokens, dwdp's statistics and
recordings go to file "out".
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
        runs.append({"mode": mode, **run(llm, job, params)})
        if job["recorded_steps"]:
            llm.collective_rpc("dwdp_trace_start", args=(job["recorded_steps"],))
            runs.append({"mode": mode, **run(llm, job, params)})
            (runs[-1]["recording"],) = llm.collective_rpc("dwdp_trace")
    Path(job["out"]).write_text(json.dumps({"seconds": seconds, "runs": runs}))


def run(llm, job, params):
    start = time.perf_counter()
    outputs = [llm.generate([p], params, use_tqdm=False)[0] for p in job["prompts"]]
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    found = {"tokens": tokens, "seconds": round(time.perf_counter() - start, 2)}
    if job["is_dwdp"]:
        (found["stats"],) = llm.collective_rpc("dwdp_stats")
    return found


if __name__ == "__main__":
    main()
