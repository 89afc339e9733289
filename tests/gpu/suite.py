# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs every check of the GPU suite and writes what they print, with the machine, as Markdown."""

import datetime
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import triton

CHECKS = ("sharing", "moe", "graphs", "copies", "attach", "questions")
FOLDER = Path(__file__).parent
LIMIT_S = 280


def run(check, *, under=()):
    """What a check printed, and why it failed, if it did."""
    command = [*under, sys.executable, str(FOLDER / f"check_{check}.py")]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return [], f"no end within {LIMIT_S} s"
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode != 0:
        return lines, (ran.stdout + ran.stderr)[-3000:]
    misses = [f"{line['check']}: {name}" for line in lines for name in line["misses"]]
    return lines, "\n".join(f"{miss} misses its limit" for miss in misses)


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


def main():
    out = Path(sys.argv[1])
    day = datetime.date.today().isoformat()
    parts = [f"# GPU suite, {day}", "`bash tests/gpu/run.sh`", table(machine())]
    failed = []
    for check in CHECKS:
        lines, why = run(check)
        parts.append(f"## {check}")
        for line in lines:
            parts += [f"### {line['check']}", table(line["figures"], line["limits"])]
        if why:
            failed.append(check)
            parts.append(f"Failed:\n\n```\n{why}\n```")
        print(f"{check}: {'failed' if why else 'passed'}", flush=True)
    answer, is_clean = sanitize()
    failed += [] if is_clean else ["compute-sanitizer"]
    parts.append(f"## compute-sanitizer\n\n{answer}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(parts) + "\n")
    print(out.read_text())
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def sanitize():
    """(what compute-sanitizer says of the graph check, whether nothing is wrong)."""
    if shutil.which("compute-sanitizer") is None:
        return "Not on this machine.", True
    _, why = run("graphs", under=("compute-sanitizer", "--error-exitcode", "9"))
    if "Device not supported" in why:
        return "Refuses this machine: device not supported.", True
    return (f"```\n{why}\n```", False) if why else ("graphs: no error.", True)


if __name__ == "__main__":
    main()
