# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs checks of `vllm-dwdp doctor`: here, in a process with limits or namespaces, or all of them.

python -m support.doctor GROUP CHECK    # prints the finding of one check as JSON
"""

import dataclasses
import importlib
import json
import resource
import subprocess
import sys
from pathlib import Path

from vllm_dwdp.doctor.check import Group
from vllm_dwdp.doctor.examination import examine
from vllm_dwdp.doctor.finding import Finding, Status
from vllm_dwdp.doctor.host import Host

TESTS = Path(__file__).parents[1]
TIMEOUT_S = 240


def look(*checks, host=None):
    """The findings of these checks, in order, without those that they need."""
    lines = examine([Group("a group", checks)], host or Host())
    return [line.finding for line in lines]


def look_elsewhere(group, check, *, prefix=(), limits=()):
    """The finding of a check in a process of its own.

    prefix: a command that starts the process, in a namespace for example. limits: pairs of a
    resource and its limit, soft and hard.
    """

    def limit():
        for name, value in limits:
            resource.setrlimit(name, (value, value))

    done = subprocess.run(
        [*prefix, sys.executable, "-m", "support.doctor", group, check],
        cwd=TESTS,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return Finding(Status(found["status"]), found["text"], found["remedy"])


def run_doctor(*options, **how):
    """Run the command on this host; how: arguments of subprocess.run."""
    return subprocess.run(
        [sys.executable, "-m", "vllm_dwdp.cli", "doctor", *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        **how,
    )


def checks_by_name(done):
    """The lines of a report in JSON, by the names of their checks."""
    assert done.stderr == "", done.stderr
    return {line["name"]: line for line in json.loads(done.stdout)["checks"]}


if __name__ == "__main__":
    module = importlib.import_module(f"vllm_dwdp.doctor.groups.{sys.argv[1]}")
    (finding,) = look(getattr(module, sys.argv[2]))
    print(json.dumps(dataclasses.asdict(finding)))
