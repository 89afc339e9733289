# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tokens/s of two DWDP ranks beside stock `-tp 2` and beside two unsharded engines, on one host.

All three stay loaded; the two that don't work are stopped (SIGSTOP). Rounds are interleaved, each
round sends the same requests to each, the last line is JSON with ratios of medians.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from random_moe import RandomMoe
from vllm.benchmarks.serve import add_cli_args, main_async

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from server import Server

from vllm_dwdp.memory.residency import group_resident_bytes

NUM_CLIENTS = 2
COMMON = ("--no-enable-prefix-caching", "--max-model-len", "2048")
DWDP = ("--data-parallel-size", "2", "--distributed-executor-backend", "dwdp")


@dataclass(frozen=True)
class Load:
    """What each of the two clients sends; lengths in tokens, `spread` as a share of them."""

    num_prompts: int = 40
    max_concurrency: int = 16
    input_tokens: int = 512
    spread: float = 0.9
    output_tokens: int = 16


class Deployment:
    """The servers that share the work: one that takes both clients, or one for each."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers
        self.tokens_per_s: list[float] = []

    def pause(self) -> None:
        for server in self.servers:
            server.pause()

    def measure(self, model: Path, load: Load, seed: int) -> float:
        """Total tokens/s, input and output, of one round."""
        for server in self.servers:
            server.resume()
        tokens_per_s = asyncio.run(self._serve(model, load, seed))
        self.pause()
        return tokens_per_s

    async def _serve(self, model: Path, load: Load, seed: int) -> float:
        arguments = [
            _client_arguments(self.servers[i % len(self.servers)], model, load, seed + i)
            for i in range(NUM_CLIENTS)
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            results = await asyncio.gather(*(main_async(a) for a in arguments))
        assert all(r["completed"] == load.num_prompts for r in results), results
        starts = [min(r["start_times"]) for r in results]
        ends = [start + r["duration"] for start, r in zip(starts, results, strict=True)]
        tokens = sum(r["total_input_tokens"] + r["total_output_tokens"] for r in results)
        return tokens / (max(ends) - min(starts))


def _client_arguments(server: Server, model: Path, load: Load, seed: int) -> argparse.Namespace:
    """What `vllm bench serve` would be given."""
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    spread = json.dumps({"input": load.spread, "output": 0.0})
    options = (
        f"--base-url {server.url} --model demo --tokenizer {model} --dataset-name random "
        f"--random-input-len {load.input_tokens} --random-output-len {load.output_tokens} "
        f"--num-prompts {load.num_prompts} --max-concurrency {load.max_concurrency} "
        f"--seed {seed} --temperature 0 --disable-tqdm --save-detailed"
    )
    return parser.parse_args([*options.split(), "--random-range-ratio", spread])


@contextlib.contextmanager
def deployments(model: Path, logs: Path) -> Iterator[dict[str, Deployment]]:
    """All three, ready and stopped by SIGSTOP."""
    recipes = {
        "dwdp": [("auto", DWDP)],
        "tp2": [("0|1", ("--tensor-parallel-size", "2"))],
        "replicas": [("0", ()), ("1", ())],
    }
    made: dict[str, Deployment] = {}
    with contextlib.ExitStack() as stack:
        for name, servers in recipes.items():
            made[name] = Deployment(
                [
                    stack.enter_context(_server(model, logs / f"{name}{i}.log", cores, options))
                    for i, (cores, options) in enumerate(servers)
                ]
            )
            for server in made[name].servers:
                server.wait_until_ready()
            made[name].pause()
        yield made


@contextlib.contextmanager
def _server(model: Path, log: Path, cores: str, options: tuple[str, ...]) -> Iterator[Server]:
    environment = {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": "1"}
    server = Server(model, *COMMON, *options, log=log, environment=environment)
    try:
        yield server
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            server.resume()
        server.stop()


def compare(made: dict[str, Deployment], model: Path, load: Load, num_rounds: int) -> None:
    """Warm up, then interleave rounds; every round starts with another deployment."""
    names = list(made)
    for name in names:
        made[name].measure(model, Load(num_prompts=6), seed=0)
    for round_idx in range(num_rounds):
        order = names[round_idx % len(names) :] + names[: round_idx % len(names)]
        for name in order:
            tokens_per_s = made[name].measure(model, load, seed=NUM_CLIENTS * (round_idx + 1))
            made[name].tokens_per_s.append(tokens_per_s)
            print(f"round {round_idx + 1}: {name:9} {tokens_per_s:8.1f} tokens/s", flush=True)


def summary(made: dict[str, Deployment], model: RandomMoe) -> dict[str, float]:
    medians = {name: statistics.median(d.tokens_per_s) for name, d in made.items()}
    workers = [process.pid for process in made["dwdp"].servers[0].family()]
    return {
        "vs_tp2": round(medians["dwdp"] / medians["tp2"], 3),
        "vs_replicas": round(medians["dwdp"] / medians["replicas"], 3),
        "expert_bytes_ratio": round(group_resident_bytes(workers) / model.expert_bytes, 4),
        **{f"{name}_tokens_per_s": round(median, 1) for name, median in medians.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-prompts", type=int, default=Load.num_prompts)
    parser.add_argument("--model", type=json.loads, default={}, help="sizes of RandomMoe, as JSON")
    parser.add_argument("--logs", type=Path, help="folder for the servers' logs")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    load, model = Load(num_prompts=args.num_prompts), RandomMoe(**args.model)
    with tempfile.TemporaryDirectory(prefix="dwdp-bench-") as folder:
        logs = args.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        path = model.write(Path(folder) / "model")
        print(json.dumps({"model": asdict(model), "expert_bytes": model.expert_bytes}))
        print(json.dumps({"load_per_client": asdict(load), "clients": NUM_CLIENTS}))
        with deployments(path, logs) as made:
            compare(made, path, load, args.rounds)
            print(json.dumps(summary(made, model)))


if __name__ == "__main__":
    main()
