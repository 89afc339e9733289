# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Sends an arm the requests of one round: `vllm bench serve`, a client for each rank.

The clients run in one process, so that they start at the same time. An arm with several servers has
a client for each; otherwise all clients use the same one.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import shlex
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.load import Load
from vllm_dwdp.bench.serve_command import SERVED_NAME


@dataclass(frozen=True)
class ClientOptions:
    """What all clients have in common.

    tokenizer: the model's path or name. extra: more options for `vllm bench serve`.
    """

    tokenizer: str
    load: Load
    extra: tuple[str, ...] = ()

    def arguments(self, url: str, seed: int) -> list[str]:
        """The options of one client; `seed` decides on its prompts."""
        load = self.load
        spread = json.dumps({"input": load.spread, "output": 0.0})
        found = ["--base-url", url, "--model", SERVED_NAME, "--tokenizer", self.tokenizer]
        found += ["--dataset-name", "random", "--random-input-len", str(load.input_tokens)]
        found += ["--random-output-len", str(load.output_tokens), "--random-range-ratio", spread]
        found += ["--num-prompts", str(load.num_prompts), "--seed", str(seed)]
        found += ["--max-concurrency", str(load.max_concurrency), "--temperature", "0"]
        return [*found, "--ignore-eos", *self.extra]

    def printed(self, url: str, seed: int) -> str:
        """The command as one would type it."""
        return "vllm bench serve " + shlex.join(self.arguments(url, seed))


@dataclass(frozen=True)
class Served:
    """What the clients saw in one round.

    tokens_per_s: of prompts and answers, from the first request to the last answer. ttft_s: the
    median time to the first token. itl_s: the median time between tokens, None if answers have one.
    """

    tokens_per_s: float
    ttft_s: float
    itl_s: float | None


class Clients:
    """A process for the clients of all rounds. Use it as a context, which ends it.

    log: a file for what vLLM prints there.
    """

    def __init__(self, log: Path) -> None:
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_print_to, initargs=(str(log),)
        )

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def serve(
        self, urls: Sequence[str], options: ClientOptions, *, num_clients: int, first_seed: int
    ) -> Served:
        """Run a round. Raises BenchError unless every request was answered."""
        given = [options.arguments(urls[i % len(urls)], first_seed + i) for i in range(num_clients)]
        return self._pool.submit(_serve, given, options.load.num_prompts).result()


def _print_to(log: str) -> None:
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _serve(given: Sequence[Sequence[str]], num_prompts: int) -> Served:
    results = asyncio.run(_run_all(given))
    completed, expected = sum(r["completed"] for r in results), len(given) * num_prompts
    if completed != expected:
        errors = [error for result in results for error in result["errors"] if error]
        why = errors[0].splitlines()[-1] if errors else "no error was told"
        raise BenchError(
            f"expected answers to {expected} requests, got {completed}: {why}; see the server's "
            "log, which --logs keeps."
        )
    return _summary(results)


async def _run_all(given: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    from vllm.benchmarks.serve import main_async

    return list(await asyncio.gather(*(main_async(_parsed(arguments)) for arguments in given)))


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    from vllm.benchmarks.serve import add_cli_args

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    # Neither changes what is measured: results come with details, and without a progress bar.
    return parser.parse_args([*arguments, "--disable-tqdm", "--save-detailed"])


def _summary(results: Sequence[dict[str, Any]]) -> Served:
    starts = [min(result["start_times"]) for result in results]
    ends = [start + result["duration"] for start, result in zip(starts, results, strict=True)]
    tokens = sum(r["total_input_tokens"] + r["total_output_tokens"] for r in results)
    gaps = [gap for result in results for gaps in result["itls"] for gap in gaps]
    return Served(
        tokens_per_s=tokens / (max(ends) - min(starts)),
        ttft_s=statistics.median(ttft for result in results for ttft in result["ttfts"]),
        itl_s=statistics.median(gaps) if gaps else None,
    )
