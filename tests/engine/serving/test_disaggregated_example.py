# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The example of prefill ranks before a decode server works as its README says.

It takes a minute and a half, and is skipped without nixl and vllm-router.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import leftovers

from vllm_dwdp.bench.ports import free_port

pytestmark = pytest.mark.slow
SERVE = Path(__file__).resolve().parents[3] / "examples" / "disaggregated" / "serve.py"


def test_both_ranks_prefill_and_all_processes_end():
    for name in ("nixl", "vllm_router"):
        pytest.importorskip(name, reason="pip install nixl vllm-router")
    command = [sys.executable, "-I", "-X", "utf8", SERVE, "--first-port", str(free_port(24))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = re.findall(r"prefilled by rank (\d)", done.stdout)
    assert len(ranks) == 4 and set(ranks) == {"0", "1"}
    (moved,) = re.findall(r"([\d.]+) MiB of KV cache moved", done.stdout)
    assert float(moved) > 0.1
    assert leftovers.of_these_tests() == set()
