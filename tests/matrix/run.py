# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks that model families give the same tokens and log-probabilities with dwdp as without.

    python tests/matrix/run.py [--model-type T ...] [--experts E] [--ranks N] [--redundancy R]
        [--fetch MODE] [--quantization Q] [--results RESULTS.md] [--keep FOLDER]

For each family it makes a small checkpoint with random weights, runs stock vLLM on it and then N
ranks on the CPU, and compares. The outcomes:

* equal: tokens and log-probabilities are the same, to the last bit.
* refused: dwdp refused to start, with this sentence.
* stock fails: stock vLLM can't run the checkpoint on this machine; dwdp didn't run.
* DIFFERENT, ERROR: tokens or log-probabilities differ, or dwdp failed. The exit status is 1.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from families import FAMILIES
from verdict import Job, Verdict, run_family

HEAD = ("family", "architecture", "experts", "ranks", "fetch", "outcome", "seconds")


def main() -> None:
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends its engines on the way
    job = Job(args.experts, args.ranks, args.redundancy, args.fetch, args.quantization)
    with tempfile.TemporaryDirectory() as folder:
        verdicts = [run_one(name, job, args.keep or Path(folder)) for name in args.model_type]
    text = table(verdicts, job)
    print(f"\n{text}")
    args.results.write_text(text)
    sys.exit(any(verdict.is_failure for verdict in verdicts))


def run_one(name: str, job: Job, folder: Path) -> Verdict:
    verdict = run_family(name, job, folder / name)
    print(f"{name}: {verdict.outcome} ({verdict.seconds:.0f} s)", flush=True)
    return verdict


def table(verdicts: Iterable[Verdict], job: Job) -> str:
    """A table in Markdown, with a row for each family."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for v in verdicts:
        outcome = v.outcome.replace("|", r"\|")
        shape = (str(job.experts), str(job.ranks), job.fetch)
        rows.append((v.family, v.architecture, *shape, outcome, f"{v.seconds:.0f}"))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-type", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--redundancy", type=float, default=1.0)
    parser.add_argument("--fetch", default="selective", help="dwdp's option")
    parser.add_argument("--quantization", help="of stock vLLM and of the ranks")
    parser.add_argument("--results", type=Path, default=Path(os.devnull))
    parser.add_argument("--keep", type=Path, help="keep checkpoints and logs in this folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
