# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs the checks of the GPU suite and writes their results in Markdown.

    python suite.py RESULTS.md [--seconds N] [--rehearse] [CHECK ...]

* Checks that settle the most risk in a second run first, so that the time limit cuts off what
  matters least.
* The results of a check are written before the next check starts.
* Exit status: 1 if there was an error; else 2 if figures are outside their ranges; else 3 if a
  check was left out for lack of time, or if no part ran; else 0.
"""

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

from parts import PATIENCE, REHEARSE
from report import Outcome, Status, table

CHECKS = (
    *("sharing", "questions", "graphs", "gather", "moe", "vllm_moe"),
    *("copies", "host_memory", "attach", "adopt"),
)
WHEN_ASKED = ("sanitizer",)
FOLDER = Path(__file__).with_name("checks")
LIMIT_S = 90.0 * PATIENCE
"""The seconds that one check may take."""

SHORTEST_S = 5.0
"""A check isn't started if fewer seconds are left."""


def run_check(check, limit_s, *, folder=FOLDER, is_rehearsal=False):
    """Run a check's script for at most so many seconds, and end all processes that it started."""
    command = [sys.executable, str(folder / f"check_{check}.py")]
    command += [REHEARSE] if is_rehearsal else []
    start = time.monotonic()
    status, output = run_in_session(command, limit_s)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"')]
    return Outcome(
        check,
        lines,
        why=why_failed(status, output, lines, limit_s),
        seconds=time.monotonic() - start,
        is_rehearsal=is_rehearsal,
    )


def run_in_session(command, limit_s):
    """(exit status, output) of a command; the status is None if the time limit ended it."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def why_failed(status, output, lines, limit_s):
    """The error of a check that none of its parts has reported; empty if there is none."""
    if status is None:
        return f"no end within {limit_s:.0f} s"
    has_reported = any(line.get("outcome") == "error" for line in lines)
    if status == 0 or (status == 1 and has_reported):
        return ""
    return f"{output[-3000:]}\nexit status {status}"


def run_checks(checks, results, *, seconds, **options):
    """Run as many checks as there is time for; yields an outcome for each check."""
    deadline = time.monotonic() + seconds
    for check in checks:
        left = deadline - time.monotonic()
        if left < SHORTEST_S:
            outcome = Outcome(check, why="", is_left_out=True)
        else:
            outcome = run_check(check, min(LIMIT_S, left), **options)
        results.write(outcome.section())
        results.flush()
        print(outcome.sentence, flush=True)
        yield outcome


def exit_status(outcomes):
    """The exit status for the worst of the outcomes."""
    statuses = {outcome.status for outcome in outcomes}
    if Status.ERROR in statuses:
        return 1
    if Status.MISSED in statuses:
        return 2
    is_incomplete = any(outcome.is_left_out for outcome in outcomes)
    return 3 if is_incomplete or statuses <= {Status.NOT_RUN} else 0


def machine():
    """A description of this machine and its GPUs."""
    import torch
    import triton

    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    free, total = torch.cuda.mem_get_info()
    return {
        "GPU": f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}",
        "GPU memory": f"{total >> 30} GiB, {free >> 30} GiB free",
        "driver": driver[0] if driver else "unknown",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "Triton": triton.__version__,
    }


def heading(args):
    day = datetime.date.today().isoformat()
    if args.rehearse:
        about = "Rehearsed over the fake CUDA driver: no GPU was at hand, and no figure means much."
    else:
        about = table(("", ""), machine().items())
    return f"# GPU suite, {day}: {' '.join(args.checks or ['all checks'])}\n\n{about}\n\n"


def main():
    args = parse()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with args.results.open("a" if args.checks else "w") as results:
        results.write(heading(args))
        checks = args.checks or CHECKS
        outcomes = list(
            run_checks(checks, results, seconds=args.seconds, is_rehearsal=args.rehearse)
        )
        rows = [row for outcome in outcomes for row in outcome.summary_rows()]
        results.write(f"## Summary\n\n{table(('part', 'outcome', 'seconds'), rows)}\n")
    sys.exit(exit_status(outcomes))


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("checks", nargs="*", metavar="CHECK", type=known_check)
    parser.add_argument("--seconds", type=float, default=345.0, help="for all checks together")
    parser.add_argument(REHEARSE, action="store_true", help="over the fake CUDA driver")
    return parser.parse_args()


def known_check(name):
    if name not in CHECKS + WHEN_ASKED:
        known = ", ".join(CHECKS + WHEN_ASKED)
        raise argparse.ArgumentTypeError(f"expected one of {known}, got '{name}'")
    return name


if __name__ == "__main__":
    main()
