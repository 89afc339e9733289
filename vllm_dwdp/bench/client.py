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
import signal
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.load import Load
from vllm_dwdp.bench.serve_command import SERVED_NAME


@dataclass(frozen=True)
class ClientOptions:
    """What all clients have in common.

    model: names the tokenizer, unless `extra` does. extra: more options for `vllm bench serve`.
    """

    model: str
    load: Load
    extra: tuple[str, ...] = ()

    def arguments(self, url: str, seed: int) -> list[str]:
        """The options of one client; `seed` decides on its prompts."""
        load = self.load
        variation = json.dumps({"input": load.variation, "output": 0.0})
        found = ["--base-url", url, "--model", SERVED_NAME, "--tokenizer", self.model]
        found += ["--dataset-name", "random", "--random-input-len", str(load.input_tokens)]
        found += ["--random-output-len", str(load.output_tokens), "--random-range-ratio", variation]
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
        self._log = log
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(str(log),)
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
        try:
            results = self._pool.submit(_run, given).result()
        except BrokenProcessPool as error:
            raise BenchError(
                f"the process of the clients has ended; see {self._log}, which --logs keeps."
            ) from error
        return summed_up(results, expected=num_clients * options.load.num_prompts)


def _begin(log: str) -> None:
    """Prepare the process: print to the log, leave Ctrl-C to the parent, use no proxy."""
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["no_proxy"] = "*"


def _run(given: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What `vllm bench serve` finds for each client. Raises BenchError."""
    try:
        return asyncio.run(_run_all(given))
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines()
        raise BenchError(
            f"'vllm bench serve' ended with {type(error).__name__}: "
            f"{lines[-1] if lines else 'no more is known'}"
        ) from None


async def _run_all(given: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    from vllm.benchmarks.serve import main_async

    return list(await asyncio.gather(*(main_async(_parsed(arguments)) for arguments in given)))


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    from vllm.benchmarks.serve import add_cli_args

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    # Neither changes what is measured: results come with details, and without a progress bar.
    return parser.parse_args([*arguments, "--disable-tqdm", "--save-detailed"])


def summed_up(results: Sequence[dict[str, Any]], *, expected: int) -> Served:
    """The sum of what clients found. Raises BenchError unless all expected answers are there."""
    completed = sum(result["completed"] for result in results)
    if completed != expected:
        errors = [error for result in results for error in result["errors"] if error]
        why = errors[0].splitlines()[-1] if errors else "they name no error"
        raise BenchError(f"expected answers to {expected} requests, got {completed}: {why}.")
    starts = [min(result["start_times"]) for result in results]
    ends = [start + result["duration"] for start, result in zip(starts, results, strict=True)]
    tokens = sum(r["total_input_tokens"] + r["total_output_tokens"] for r in results)
    gaps = [gap for result in results for gaps in result["itls"] for gap in gaps]
    return Served(
        tokens_per_s=tokens / (max(ends) - min(starts)),
        ttft_s=statistics.median(ttft for result in results for ttft in result["ttfts"]),
        itl_s=statistics.median(gaps) if gaps else None,
    )
