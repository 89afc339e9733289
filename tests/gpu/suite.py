# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs every check of the GPU suite and writes what they print, with the machine, as Markdown."""

import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch
import triton

CHECKS = ("sharing", "gather", "adopt", "moe", "graphs", "copies", "attach", "questions")
FOLDER = Path(__file__).parent
LIMIT_S = 180
SANITIZER = (
    *("compute-sanitizer", "--error-exitcode", "9"),
    *("--report-api-errors", "no"),  # ranks ask for what a GPU may not have
)
NUM_SANITIZED_REPLAYS = "3"


def run(check, *arguments, under=()):
    """What a check printed, and why it failed, if it did."""
    command = [*under, sys.executable, str(FOLDER / f"check_{check}.py"), *arguments]
    returncode, output = run_in_session(command)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if returncode is None:
        return lines, f"no end within {LIMIT_S} s"
    if returncode != 0:
        return lines, output[-3000:]
    misses = [f"{line['check']}: {name}" for line in lines for name in line["misses"]]
    return lines, "\n".join(f"{miss} misses its limit" for miss in misses)


def run_in_session(command):
    """(exit status, output); no status after LIMIT_S. Nothing that it started goes on."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def machine():
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


def table(figures, limits=None):
    limits = limits or {}
    rows = [f"| {name} | {value} | {limits.get(name, '')} |" for name, value in figures.items()]
    return "\n".join(["| | | limit |", "| --- | --- | --- |", *rows])


def section(check, lines, why):
    parts = [f"## {check}"]
    for line in lines:
        parts += [f"### {line['check']}", table(line["figures"], line["limits"])]
    if why:
        parts.append(f"Failed:\n\n```\n{why}\n```")
    return "\n\n".join(parts) + "\n\n"


def main():
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    day = datetime.date.today().isoformat()
    failed = []
    with out.open("w", buffering=1) as results:  # what there is stays if the rest doesn't end
        results.write(f"# GPU suite, {day}\n\n`bash tests/gpu/run.sh`\n\n{table(machine())}\n\n")
        for check in CHECKS:
            lines, why = run(check)
            results.write(section(check, lines, why))
            failed += [check] if why else []
            print(f"{check}: {'failed' if why else 'passed'}", flush=True)
        answer, is_clean = sanitize()
        results.write(f"## compute-sanitizer\n\n{answer}\n")
        failed += [] if is_clean else ["compute-sanitizer"]
    print(out.read_text())
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def sanitize():
    """(what compute-sanitizer says of the graph check, whether nothing is wrong)."""
    if shutil.which(SANITIZER[0]) is None:
        return "Not on this machine.", True
    _, why = run("graphs", NUM_SANITIZED_REPLAYS, under=SANITIZER)
    if "Device not supported" in why:
        return "Refuses this machine: device not supported.", True
    return (f"```\n{why}\n```", False) if why else ("graphs: no error.", True)


if __name__ == "__main__":
    main()
