# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures the prompt tokens a second of one GPU with a part of the experts in host memory.

    python tests/gpu/host_throughput.py [--results RESULTS.md] [--seconds N]

It compares three ways:

* Stock vLLM with everything in GPU memory, as on a GPU with more memory.
* dwdp with a part of each layer's experts in host memory.
* vLLM's own prefetch offloader with all experts of a part of the layers in host memory.

Each way has an engine of its own, and all of them stay on one GPU. They start one after the other,
and then run rounds of prompts in turn. All import vLLM while the model, of random weights, is
written. vLLM is the installed one, or the one that pack_vllm.py packed.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "bench")]
import packed_vllm  # noqa: E402
from random_moe import RandomMoe  # noqa: E402
from report import Status, outcome_of  # noqa: E402
from throughput_child import write_whole  # noqa: E402
from traces import figures_of_trace  # noqa: E402
from vllm_e2e import Child  # noqa: E402

CHILD = Path(__file__).with_name("throughput_child.py")
MODEL = RandomMoe(
    num_layers=8,
    num_experts=64,
    top_k=8,
    hidden_size=2048,
    expert_size=768,
    num_heads=16,
    num_kv_heads=4,
    head_dim=128,
)
"""Qwen3-30B-A3B with a sixth of its layers and half of its experts."""

STEP_TOKENS, PROMPT_TOKENS = 16_384, 1_024
WAITING_STEPS = 4
"""vLLM may run prompts of so many steps at a time. It plans a step while the one before runs, so
with prompts of one step it would find half of them taken."""

NUM_ROUNDS = 7
ROUND_S = 15.0
"""No round of all engines is begun with less time left; one takes 8 to 10 seconds."""

MEMORY_SHARE = 0.15
"""Of the GPU's memory, that must be free when an engine starts."""


def with_dwdp(one_of):
    """Options with one of `one_of` experts of each layer in host memory."""
    config = {"host_experts": MODEL.num_experts // one_of}
    return {"distributed_executor_backend": "dwdp", "additional_config": {"dwdp": config}}


def with_offloader(one_of):
    """Options with all experts of one of `one_of` layers in host memory."""
    return {
        "offload_backend": "prefetch",
        "offload_group_size": one_of,
        "offload_num_in_group": 1,
        "offload_prefetch_step": 1,
        "offload_params": ["w13_weight", "w2_weight"],
    }


STOCK = "everything in GPU memory, stock vLLM"
WAYS = {
    STOCK: {},
    "a quarter of the experts in host memory, dwdp": with_dwdp(4),
    "a quarter of the experts in host memory, vLLM's offloader": with_offloader(4),
    "half of the experts in host memory, dwdp": with_dwdp(2),
    "half of the experts in host memory, vLLM's offloader": with_offloader(2),
}


def options(model):
    """The options that all engines have."""
    return packed_vllm.settings() | {
        "model": str(model),
        "max_model_len": PROMPT_TOKENS + 64,
        "max_num_batched_tokens": STEP_TOKENS,
        "max_num_seqs": WAITING_STEPS * STEP_TOKENS // PROMPT_TOKENS,
        "distributed_executor_backend": "mp",  # a worker process, as with dwdp
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "moe_backend": "triton",
        "kv_cache_memory_bytes": 2 << 30,
        "gpu_memory_utilization": MEMORY_SHARE,
        "worker_extension_cls": "mode_switch.MemoryUse",
    }


class Way:
    """One way, in an engine that waits for its turn."""

    def __init__(self, name, number, model, folder, logs):
        self.name = name
        self.tokens_per_s = []
        self.gpu_bytes = 0
        self.error = None
        self._folder = folder / str(number)
        self._folder.mkdir()
        self._num_turns = 0
        self._job = {
            "options": options(model) | WAYS[name],
            "folder": str(self._folder),
            "prompt_tokens": PROMPT_TOKENS,
            "step_tokens": STEP_TOKENS,
        }
        self._log = logs / f"throughput-{number}.log"

    def begin(self):
        """Start the engine's process; returns it as a context that ends it."""
        self._child = Child(self._job, packed_vllm.environment(), self._log, script=CHILD)
        return self._child

    def start(self, used_bytes, deadline):
        """Start the engine; returns the GPU's bytes in use then. used_bytes: those before."""
        found = self._turn("start", deadline)
        if found is None:
            return used_bytes
        self.gpu_bytes = found["gpu_bytes"] - used_bytes
        return found["gpu_bytes"] + self._job["options"]["kv_cache_memory_bytes"]

    def round(self, deadline):
        if (found := self._turn("round", deadline)) is not None:
            self.tokens_per_s.append(found["tokens_per_s"])

    def figures(self, beside):
        """The figures of all rounds. beside: other ways, to divide this one's rounds by."""
        dwdp = {}
        if "additional_config" in self._job["options"]:
            dwdp = self._turn("dwdp", time.monotonic() + 15.0)
        if self.error is not None:
            raise self.error
        if recording := dwdp.pop("trace", None):
            dwdp["trace"] = figures_of_trace([recording], self._log.with_suffix(".trace.json"))
        ratios = {
            f"ratio to {way.name}": ratio(self.tokens_per_s, way.tokens_per_s) for way in beside
        }
        return {
            "prompt_tokens_per_s": round(statistics.median(self.tokens_per_s)),
            "rounds": len(self.tokens_per_s),
            "gpu_memory_of_weights_gib": round(self.gpu_bytes / 2**30, 2),
            **ratios,
            **dwdp,
        }

    def _turn(self, method, deadline):
        """What a method of the engine answers; None once it has failed, see `error`."""
        if self.error is None:
            try:
                return self._ask(method, deadline)
            except AssertionError as error:
                self.error = error
        return None

    def _ask(self, method, deadline):
        answer = self._folder / f"{self._num_turns}.out"
        write_whole(answer.with_suffix(".turn"), method)
        self._num_turns += 1
        while not answer.exists():
            self._child.check_alive()
            assert time.monotonic() < deadline, f"no end in time\n{self._child.tail()}"
            time.sleep(0.005)
        return json.loads(answer.read_text())


def ratio(rounds, others):
    """The median ratio of rounds that ran in turn, with the smallest and the largest one."""
    found = sorted(one / other for one, other in zip(rounds, others, strict=False))
    if not found:
        return "not measured"
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def run_rounds(ways, deadline):
    """Start the engines, and let them run rounds in turn as long as there is time."""
    used_bytes = 0
    for way in ways:
        used_bytes = way.start(used_bytes, deadline)
    for number in range(NUM_ROUNDS):
        if time.monotonic() > deadline - ROUND_S:
            break
        first = number % len(ways)
        for way in ways[first:] + ways[:first]:
            way.round(deadline)


def outcomes(ways, results):
    """Write and yield each way's outcome."""
    for way in ways:
        beside = [other for other in ways if is_reference(other.name, way.name)]
        outcome = outcome_of(way.name, functools.partial(way.figures, beside))
        results.write(outcome.section())
        print(outcome.sentence, flush=True)
        yield outcome


def is_reference(other, name):
    """Whether a way is one that the named way is compared with."""
    if other == STOCK:
        return name != STOCK
    is_offloader = "offload_backend" in WAYS[other]
    return is_offloader and other != name and other.partition(",")[0] == name.partition(",")[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, default=Path(os.devnull))
    parser.add_argument("--logs", type=Path, help="a folder for logs and traces")
    parser.add_argument("--seconds", type=float, default=170.0, help="for all of it")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        results = stack.enter_context(args.results.open("a"))
        results.write("# Experts in host memory beside other ways\n\n")
        results.write(f"A model of random weights: {json.dumps(MODEL.__dict__)}.\n\n")
        model, logs = folder / "random", args.logs or folder
        ways = [Way(name, number, model, folder, logs) for number, name in enumerate(WAYS)]
        for way in ways:
            stack.enter_context(way.begin())
        MODEL.write(model)
        run_rounds(ways, deadline)
        statuses = {outcome.status for outcome in outcomes(ways, results)}
    sys.exit(Status.ERROR in statuses)


if __name__ == "__main__":
    main()
