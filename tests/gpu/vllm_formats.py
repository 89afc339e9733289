# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs vLLM's MoE kernels, for every format of weights, over views and slots of a GPU.

    python tests/gpu/vllm_formats.py [--jobs 12] [--results RESULTS.md] [--rehearse] [PATTERN ...]

The cases are those of tests/contract/formats whose kernels this GPU and this vLLM can run; see
format_case.py for what each does.

* --rehearse: the cases whose kernels run on this CPU, over the fake CUDA driver.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
GPU_TESTS = TESTS / "gpu"
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(GPU_TESTS), str(GPU_TESTS / "checks")]
sys.path[:0] = [str(TESTS / "contract" / "formats")]
import packed_vllm  # noqa: E402
from parts import ERROR, NOT_RUN, RAN, REHEARSE  # noqa: E402
from report import table  # noqa: E402

COLUMNS = ("case", "kernel", "tensors", "copied_mib", "largest", "other_outputs", "seconds")
GPU = (9, 0)
"""The compute capability of the GPU; cases of older kinds run on it too."""


def run_share(number, of, patterns):
    """Run every `of`-th case from `number` on; prints a line of JSON for each."""
    packed_vllm.use()
    import torch
    from cases import all_cases
    from forcing import one_process
    from format_case import enlarged
    from vllm.platforms import current_platform
    from vllm.v1.worker.workspace import init_workspace_manager

    from vllm_dwdp.engine.moe.kernel.recipe import note_arguments

    note_arguments()
    init_workspace_manager(torch.device(current_platform.device_type))
    cases = [c for c in all_cases() if c.is_cpu or c.capability <= GPU]
    cases = [enlarged(case) for case in cases if case.is_cpu == (REHEARSE in sys.argv)]
    cases = [c for c in cases if not patterns or any(re.search(p, c.name) for p in patterns)]
    with one_process():
        for index in range(number, len(cases), of):
            print(json.dumps(line_of(cases[index], 10 * index)), flush=True)


def line_of(case, index):
    """Run a case; returns its line of the results."""
    from forcing import forced
    from format_case import NotRunHere, run

    start, found, outcome, why = time.monotonic(), {}, RAN, ""
    try:
        with forced(case):
            found = run(case, index)
    except (NotRunHere, NotImplementedError) as error:
        outcome, why = NOT_RUN, str(error)
    except Exception:
        outcome, why = ERROR, traceback.format_exc(limit=-6)
    seconds = round(time.monotonic() - start, 1)
    return {"case": case.name, "outcome": outcome, "seconds": seconds, "why": why} | found


def run_in_process(number, args):
    """The lines of a share of the cases, which run in a process of their own."""
    command = [sys.executable, __file__, "--share", str(number), "--jobs", str(args.jobs)]
    command += [REHEARSE] if args.rehearse else []
    process = subprocess.Popen(
        [*command, *args.patterns],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | packed_vllm.environment() | {"VLLM_LOGGING_LEVEL": "ERROR"},
    )
    try:
        output, _ = process.communicate(timeout=args.seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output = process.communicate()[0] + "\nno end in time"
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"')]
    if process.returncode:
        why = f"exit status {process.returncode}: {output[-3000:]}"
        name = f"share {number} of the cases"
        lines.append({"case": name, "outcome": ERROR, "seconds": args.seconds, "why": why})
    return lines


def report(lines, seconds):
    """The results in Markdown."""
    ran = [line for line in lines if line["outcome"] == RAN]
    same = sum(not line["other_outputs"] for line in ran)
    parts = [
        "# MoE kernels over views and slots, by format",
        f"vLLM {packed_vllm.use()}, stand-ins for operators: {packed_vllm.stand_ins()}.",
        f"{len(ran)} cases ran in {seconds:.0f} s, {same} with the bits of stock vLLM's output.",
        table(COLUMNS, [[line[name] for name in COLUMNS] for line in ran]),
    ]
    parts += [
        f"* {line['case']} has other bits than stock vLLM's layer in: {line['other_tensors']}"
        for line in ran
        if line["other_outputs"]
    ]
    parts += [
        f"* not run: {line['case']}: {line['why']}" for line in lines if line["outcome"] == NOT_RUN
    ]
    parts += [
        f"Error in {line['case']}:\n\n```\n{line['why'].strip()}\n```"
        for line in lines
        if line["outcome"] == ERROR
    ]
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("patterns", nargs="*", help="of the names of cases to run")
    parser.add_argument("--jobs", type=int, default=12, help="processes that run side by side")
    parser.add_argument("--share", type=int, help="run this share of the cases, in this process")
    parser.add_argument("--seconds", type=float, default=170.0, help="limit of the processes")
    parser.add_argument(REHEARSE, action="store_true", help="over the fake CUDA driver")
    parser.add_argument("--results", type=Path, default=Path(os.devnull))
    args = parser.parse_args()
    if args.share is not None:
        return run_share(args.share, args.jobs, args.patterns)
    start = time.monotonic()
    packed_vllm.use()
    with ThreadPoolExecutor(args.jobs) as pool:
        found = list(pool.map(lambda number: run_in_process(number, args), range(args.jobs)))
    lines = sorted((line for share in found for line in share), key=lambda line: line["case"])
    text = report(lines, time.monotonic() - start)
    with args.results.open("a") as results:
        results.write(text)
    print(text)
    sys.exit(any(line["outcome"] == ERROR for line in lines))


if __name__ == "__main__":
    main()
