# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Sends a deployment the requests of one round, from two clients."""

import argparse
import asyncio
import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

from deployments import Deployment
from support.server import Server
from vllm.benchmarks.serve import add_cli_args, main_async

NUM_CLIENTS = 2


@dataclass(frozen=True)
class Load:
    """The requests that each client sends.

    Lengths are in tokens. Input lengths vary by up to `spread` of `input_tokens`, up and down.
    """

    num_prompts: int = 40
    max_concurrency: int = 16
    input_tokens: int = 512
    spread: float = 0.9
    output_tokens: int = 16


def measure(deployment: Deployment, model: Path, load: Load, seed: int) -> float:
    """Input and output tokens per second in one round. Pauses the deployment afterwards."""
    deployment.resume()
    tokens_per_s = asyncio.run(_serve(deployment, model, load, seed))
    deployment.pause()
    return tokens_per_s


async def _serve(deployment: Deployment, model: Path, load: Load, seed: int) -> float:
    servers = deployment.servers
    arguments = [
        _client_arguments(servers[i % len(servers)], model, load, seed + i)
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
    """The arguments of `vllm bench serve` for one client, parsed."""
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
