# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One vLLM engine of host_throughput.py, which takes turns with others on the same GPU.

Its job in JSON: {"options": of vllm.LLM, "folder", "prompt_tokens", "step_tokens"}. A file N.turn
in the folder names a method of Engine, and N.out has what the method returns, for N = 0, 1, 2 ...
"""

import itertools
import json
import random
import sys
import time
from pathlib import Path

STEPS_OF_A_ROUND = 24
"""Full steps that the prompts of a round would fill. The first step is smaller, since it begins
with the first prompt, and the last step runs the rest."""

RECORDED_STEPS = 12


class Engine:
    def __init__(self, job):
        import vllm

        self._vllm = vllm
        self._job = job
        self._rng = random.Random(0)

    def start(self):
        """Start the engine, and run a first round."""
        self._llm = self._vllm.LLM(**self._job["options"])
        self.round()
        return {"gpu_bytes": self._gpu_bytes()}

    def round(self):
        prompts = self._make_prompts()
        params = self._vllm.SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        start = time.perf_counter()
        self._llm.generate(prompts, params, use_tqdm=False)
        tokens = sum(len(prompt["prompt_token_ids"]) for prompt in prompts)
        return {"tokens_per_s": tokens / (time.perf_counter() - start)}

    def dwdp(self):
        """What dwdp says of the rounds until now, and a trace of some steps of one more round."""
        (stats,) = self._llm.collective_rpc("dwdp_stats")
        return self._count(stats) | {"trace": self._trace()}

    def _trace(self):
        """The recording of some steps of a round, as dwdp's workers return it."""
        self._llm.collective_rpc("dwdp_trace_start", args=(RECORDED_STEPS,))
        self.round()
        (recording,) = self._llm.collective_rpc("dwdp_trace")
        return recording

    @staticmethod
    def _count(stats):
        return {
            "fetch": stats["fetch"],
            "link_gb_per_s": stats.get("link_gb_per_s"),
            "steps": {mode: count for mode, count in stats["steps"].items() if count},
            "exposed_s": round(sum(stats["exposed_seconds"]), 3),
        }

    def _gpu_bytes(self):
        """Bytes of GPU memory in use by all processes, without this engine's KV cache."""
        (found,) = self._llm.collective_rpc("gpu_bytes")
        return found - self._job["options"]["kv_cache_memory_bytes"]

    def _make_prompts(self):
        length = self._job["prompt_tokens"]
        number = STEPS_OF_A_ROUND * self._job["step_tokens"] // length
        return [
            {"prompt_token_ids": [self._rng.randrange(10, 4000) for _ in range(length)]}
            for _ in range(number)
        ]


def write_whole(path, text):
    """Write a file that others see only once all of it is there."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text)
    unfinished.rename(path)


def main():
    job = json.loads(sys.argv[1])
    folder = Path(job["folder"])
    engine = Engine(job)
    for number in itertools.count():
        turn = folder / f"{number}.turn"
        while not turn.exists():
            time.sleep(0.02)
        answer = getattr(engine, turn.read_text())()
        write_whole(folder / f"{number}.out", json.dumps(answer))


if __name__ == "__main__":
    main()
