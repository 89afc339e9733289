# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks that ranks on GPUs give the same tokens as stock vLLM, eager and with CUDA graphs.

    python tests/gpu/vllm_e2e.py [OPTIONS] [--results RESULTS.md] [MODEL ...]

It runs every fetch mode on each MODEL, by default on a model with random weights. If there are two
GPUs, each rank takes one; otherwise both take GPU 0. vLLM is the installed one, or the one that
pack_vllm.py packed.

* --quick: only four starts of a small model, in at most four minutes.
* --block-fp8: quantise the experts of the random model; --quick then leaves graphs out.
* --fetch MODE: without --quick, leave out starts with other modes; may be given several times.
* --traces FOLDER: keep the recorded steps of the starts that record some.
* --rehearse: with --quick, run what a CPU can, with vLLM's CPU backend.
"""

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "bench")]
import packed_vllm  # noqa: E402
from mode_switch import EXTENSION, MIXED  # noqa: E402
from parts import NOT_RUN  # noqa: E402
from random_moe import RandomMoe  # noqa: E402
from report import Outcome, Status, outcome_of  # noqa: E402
from traces import figures_of_trace  # noqa: E402

from vllm_dwdp.bench.ports import free_port  # noqa: E402

BEGIN = time.monotonic()
CHILD = Path(__file__).with_name("vllm_child.py")
PROMPTS = ["It is a truth", "And the LORD said unto", "Emma was", "In the beginning", "My dear"]
PROMPTS += [" and it came to pass in those days".join(PROMPTS)]
CAPTURED = [1, 2]
US_PER_TOKEN = 500.0
BREAK_EVEN_TOKENS = 2
"""With 'auto' a layer's copy takes as long as the compute of so many tokens.

So prompts prefetch, and decodes don't.
"""

SMALL = RandomMoe(num_layers=2, num_experts=30, hidden_size=1024, expert_size=704)
"""Its expert tensors are large enough to share, and have boundary pages of 2 MiB."""

SMALL_FP8 = RandomMoe(
    num_layers=2, num_experts=30, hidden_size=1024, expert_size=768, block_fp8=True
)
LARGE = RandomMoe(num_layers=12, num_experts=32, hidden_size=1024, expert_size=1024)
REHEARSED = RandomMoe(num_layers=2, num_experts=6, hidden_size=128, expert_size=128)
QUICK_S, QUICK_START_S, START_S = 240.0, 90.0, 600.0
KV_CACHE_BYTES = 1 << 30
EXTRA_BYTES = 32 << 20
"""Spare memory for copies of the experts that tokens of an earlier start chose most."""

RECORDED_STEPS = 200
"""More steps than the prompts take."""

MEMORY_SHARE = 0.4
"""Part of a GPU's memory for each rank; by default each of two ranks would ask for nearly all."""


@dataclass(frozen=True)
class Start:
    """A start of the engines of one or two ranks.

    fetch: dwdp's option; None for stock vLLM. modes: fetch modes to run one after the other; None
    is the mode with which the engine starts. host_experts: the number of experts that a single
    rank keeps in host memory; None for two ranks on GPU memory. extra_bytes: dwdp's option
    extra_expert_bytes. The first start with it counts which experts are chosen, later ones keep
    copies of those. recorded_steps: with it each mode runs once more, and so many steps are traced.
    """

    name: str
    eager: bool = True
    fetch: str | None = None
    modes: tuple[str | None, ...] = (None,)
    host_experts: int | None = None
    extra_bytes: int = 0
    recorded_steps: int = 0

    @property
    def num_ranks(self):
        return 1 if self.fetch is None or self.host_experts else 2


FETCHES = ("direct", "prefetch", "selective", "auto")
SWITCHED = ("selective", "prefetch", "direct", MIXED)
QUICK = (
    Start("stock vLLM, eager"),
    Start(
        "two ranks, eager, modes switched",
        fetch="selective",
        modes=SWITCHED,
        extra_bytes=EXTRA_BYTES,
        recorded_steps=RECORDED_STEPS,
    ),
    Start(
        "two ranks, CUDA graphs, selective, extra experts",
        eager=False,
        fetch="selective",
        extra_bytes=EXTRA_BYTES,
    ),
    Start(
        "one rank, experts in host memory, eager, modes switched",
        fetch="selective",
        modes=SWITCHED,
        host_experts=12,
        recorded_steps=RECORDED_STEPS,
    ),
)


def all_starts():
    """All starts; a start of stock vLLM comes before the starts that are compared with it."""
    for eager in (True, False):
        name = "eager" if eager else "CUDA graphs"
        yield Start(f"stock vLLM, {name}", eager)
        for fetch in FETCHES:
            steps = RECORDED_STEPS if eager else 0  # graphs run no Python that could record
            yield Start(f"two ranks, {name}, {fetch}", eager, fetch, recorded_steps=steps)


class EndToEnd:
    """Starts engines on one model, and compares their tokens with the last start of stock vLLM.

    cache: a folder that vLLM's caches and the counts of chosen experts are kept in. traces: one
    for the traces of recorded steps.
    """

    def __init__(self, model, cache, traces, *, is_rehearsal):
        self._model = Path(model)
        self._cache = Path(cache)
        self._traces = Path(traces)
        self._is_rehearsal = is_rehearsal
        self._stock_tokens = None

    def outcome(self, start, limit_s):
        """Run a start; returns its outcome, as the suite reports checks."""
        if why := self._why_not_rehearsed(start):
            line = {"part": start.name, "outcome": NOT_RUN, "seconds": 0.0, "why": why}
            return Outcome(start.name, [line], is_rehearsal=True)
        run = functools.partial(self._compare, start, limit_s)
        title = f"{start.name}, {self._model.name}"
        return outcome_of(start.name, run, title=title, is_rehearsal=self._is_rehearsal)

    def _why_not_rehearsed(self, start):
        """Why a rehearsal can't run a start; None if it can, or if this is no rehearsal."""
        if self._is_rehearsal and not start.eager:
            return "needs CUDA graphs"
        if self._is_rehearsal and start.host_experts:
            return "ranks on CPUs have no other memory than the host's"
        return None

    def _compare(self, start, limit_s):
        """Run a start and check its tokens; returns its figures."""
        if start.fetch is None:
            self._stock_tokens = None  # if this start fails, an older one is no reference
        had_counts = bool(start.extra_bytes) and self._has_counts
        ranks = self._run(start, limit_s)
        runs = [run for rank in ranks for run in rank["runs"]]
        if start.fetch is None:
            self._stock_tokens = runs[0]["tokens"]
        expected = self._stock_tokens or runs[0]["tokens"]
        for number, run in enumerate(runs):
            assert run["tokens"] == expected, f"run {number} ({run['mode']}): {run['tokens']}"
        extra_bytes = [run["stats"]["expert_bytes_extra"] for run in runs if "stats" in run]
        assert had_counts == any(extra_bytes), f"copies of extra experts: {extra_bytes}"
        if start.fetch is not None:
            for rank in ranks:
                check_copies(start, rank["runs"])
        return {
            "model": self._model.name,
            "stand-ins in vLLM": "the CPU backend"
            if self._is_rehearsal
            else packed_vllm.stand_ins(),
            "tokens": sum(map(len, expected)),
            "equal to stock vLLM's": "this is it" if start.fetch is None else self._has_stock,
            "seconds to start": [rank["seconds"]["start"] for rank in ranks],
            "MiB of extra experts": round(max(extra_bytes, default=0) / 2**20, 1),
            "seconds by mode": {
                name_of(run, start): run["seconds"] for run in runs if "recording" not in run
            },
            **self._trace_figures(start, ranks),
        }

    def _trace_figures(self, start, ranks):
        """Write the trace of each recorded run; returns the totals by mode."""
        found = {}
        for runs in zip(*(rank["runs"] for rank in ranks), strict=True):
            if "recording" in runs[0]:
                mode = name_of(runs[0], start)
                file = self._traces / f"{start.num_ranks}-ranks-{mode}.trace.json"
                recordings = [run["recording"] for run in runs]
                found[f"trace, {mode}"] = figures_of_trace(recordings, file)
        return found

    @property
    def _has_counts(self):
        """Whether ranks of an earlier start have saved how often experts were chosen."""
        return any(self._cache.glob("dwdp/expert_counts/*/rank-*.json"))

    @property
    def _has_stock(self):
        return "yes" if self._stock_tokens else "not known, stock vLLM failed; ranks are equal"

    def _run(self, start, limit_s):
        """Start all ranks of a start; returns what each has written."""
        deadline = time.monotonic() + limit_s
        port = free_port()
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            children = [
                stack.enter_context(
                    Child(
                        {**self._job(start), "out": f"{folder}/{rank}.json"},
                        self._environment(start, rank, port),
                        Path(folder) / f"{rank}.log",
                    )
                )
                for rank in range(start.num_ranks)
            ]
            return [child.result(deadline) for child in children]

    def _job(self, start):
        options = {
            "model": str(self._model),
            "max_model_len": 256,
            "max_num_batched_tokens": 1024,
            "max_num_seqs": 8,
            "enforce_eager": start.eager,
            "seed": 0,
        }
        if not self._is_rehearsal:
            options |= gpu_options(start)
        if start.fetch is not None:
            options |= dwdp_options(start, self._model)
        is_dwdp = start.fetch is not None
        return {
            "options": options,
            "prompts": PROMPTS,
            "modes": start.modes,
            "is_dwdp": is_dwdp,
            "recorded_steps": start.recorded_steps,
        }

    def _environment(self, start, rank, port):
        found = packed_vllm.environment() | {"VLLM_CACHE_ROOT": str(self._cache)}
        if self._is_rehearsal:
            found["VLLM_CPU_KVCACHE_SPACE"] = "1"
        if start.num_ranks > 1:
            found |= {
                "VLLM_DP_RANK": str(rank),
                "VLLM_DP_RANK_LOCAL": str(self._local_rank(rank)),
                "VLLM_DP_SIZE": str(start.num_ranks),
                "VLLM_DP_MASTER_IP": "127.0.0.1",
                "VLLM_DP_MASTER_PORT": str(port),
            }
        return found

    def _local_rank(self, rank):
        """The rank's number on its host. Ranks take GPUs in turns; on CPUs all numbers differ."""
        return rank if self._is_rehearsal else rank % max(1, num_gpus())


def name_of(run, start):
    return run["mode"] or start.fetch or "-"


class Child:
    """An engine in a process of its own, as a context that ends it and all that it started."""

    def __init__(self, job, environment, log, *, script=CHILD):
        self._job = job
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, str(script), json.dumps(job)],
                env=os.environ | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def result(self, deadline):
        try:
            status = self._process.wait(timeout=max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end in time\n{self.tail()}") from None
        assert status == 0, f"exit status {status}\n{self.tail()}"
        return json.loads(Path(self._job["out"]).read_text())

    def check_alive(self):
        status = self._process.poll()
        assert status is None, f"exit status {status}\n{self.tail()}"

    def tail(self):
        """The end of the log."""
        return self._log.read_text(errors="replace")[-4000:]


def gpu_options(start):
    settings = packed_vllm.settings()
    compilation = dict(settings.get("compilation_config", {}))
    if not start.eager:
        compilation["cudagraph_capture_sizes"] = CAPTURED
        if settings:  # the packed vLLM can only capture whole steps
            compilation["cudagraph_mode"] = "FULL_DECODE_ONLY"
    return settings | {
        "compilation_config": compilation,
        "moe_backend": "triton",
        "kv_cache_memory_bytes": KV_CACHE_BYTES,
        "gpu_memory_utilization": MEMORY_SHARE,
    }


def dwdp_options(start, model):
    config = {"fetch": start.fetch}
    if start.host_experts:
        config["host_experts"] = start.host_experts
    if start.extra_bytes:
        config["extra_expert_bytes"] = start.extra_bytes
    if start.fetch in ("auto", "prefetch"):
        config |= given_costs(model)
    found = {
        "distributed_executor_backend": "dwdp",
        "additional_config": {"dwdp": config},
    }
    if start.modes != (None,):
        found["worker_extension_cls"] = EXTENSION
    return found


def given_costs(model):
    """Options with which 'auto' prefetches for prompts and not for decodes, on any machine."""
    config = json.loads((model / "config.json").read_text())
    row_bytes = 3 * 2 * config["hidden_size"] * config["moe_intermediate_size"]
    missing_bytes = config["num_experts"] // 2 * row_bytes
    copy_us = BREAK_EVEN_TOKENS * US_PER_TOKEN
    return {"link_gb_per_s": missing_bytes / copy_us / 1e3, "compute_us_per_token": US_PER_TOKEN}


def check_copies(start, runs):
    """Check that each mode that copies has copied in its first run, and that 'direct' never has.

    When a mode runs once more, slots may hold all experts that it needs.
    """
    before = {"prefetch": 0, "selective": 0}
    for run in runs:
        now = {mode: sum(by_peer) for mode, by_peer in run["stats"]["bytes_fetched"].items()}
        copied = {mode: now[mode] - before[mode] for mode in now}
        before = now
        mode = run["mode"] or start.fetch
        copying = {MIXED: "prefetch", "auto": "prefetch"}.get(mode, mode)
        if copying in copied:
            is_first = "recording" not in run
            assert copied[copying] > 0 or not is_first, f"{mode} copied nothing: {copied}"
        else:
            assert not any(copied.values()), f"{mode} copied {copied}"


def num_gpus():
    import torch

    return torch.cuda.device_count()


def reason_to_skip(args):
    import torch

    if not packed_vllm.is_at_hand():
        return "vLLM is not installed, and pack_vllm.py packed none"
    if not args.rehearse and not torch.cuda.is_available():
        return "there is no GPU"
    return None


def starts_of(args):
    if not args.quick:
        modes = {None, *(args.fetch or FETCHES)}
        return [start for start in all_starts() if start.fetch in modes]
    return [start for start in QUICK if start.eager or not args.block_fp8]


def random_model(args):
    if args.rehearse:
        return REHEARSED
    if args.block_fp8:
        return SMALL_FP8
    return SMALL if args.quick else LARGE


def run_all(args, model, cache, results):
    """Run the starts; writes and yields their outcomes."""
    end_to_end = EndToEnd(model, cache, args.traces or cache, is_rehearsal=args.rehearse)
    deadline = BEGIN + (QUICK_S if args.quick else float("inf"))
    limit_s = QUICK_START_S if args.quick and not args.rehearse else START_S
    for start in starts_of(args):
        left = START_S if args.rehearse else deadline - time.monotonic()
        if left < 10:
            outcome = Outcome(start.name, is_left_out=True)
        else:
            outcome = end_to_end.outcome(start, min(limit_s, left))
        results.write(outcome.section())
        results.flush()
        print(outcome.sentence, flush=True)
        yield outcome


def title(args):
    quick = ", quick" if args.quick else ""
    return quick + (", experts in block FP8" if args.block_fp8 else "")


def main():
    args = parse()
    if reason := reason_to_skip(args):
        return print(f"skipped: {reason}")
    with tempfile.TemporaryDirectory() as folder, args.results.open("a") as results:
        results.write(f"# vLLM end to end{title(args)}\n\n")
        models = args.models or [random_model(args).write(Path(folder) / "random")]
        statuses = {o.status for model in models for o in run_all(args, model, folder, results)}
    sys.exit(Status.ERROR in statuses)


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--quick", action="store_true", help="four starts, four minutes")
    parser.add_argument("--block-fp8", action="store_true", help="experts in FP8, on GPUs only")
    parser.add_argument("--fetch", action="append", choices=FETCHES, help="see above")
    parser.add_argument("--traces", type=Path, help="a folder to keep recorded steps in")
    parser.add_argument("--results", type=Path, default=Path(os.devnull))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
