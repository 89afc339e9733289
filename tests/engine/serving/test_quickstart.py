# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The first command of the README works whatever variables the shell exports."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_dwdp.memory.residency import ExpertMap

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
MIB = 1 << 20
NOWHERE = "http://127.0.0.1:9"
HOSTILE = {
    **dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"), NOWHERE),
    "SSL_CERT_FILE": "/missing.pem",
    "OPENAI_BASE_URL": NOWHERE,
    "OPENAI_API_KEY": "secret",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_CONFIG_PATH": "/missing.json",
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_API_KEY": "secret",
    "VLLM_PLUGINS": "another",
    "VLLM_PORT": "7",
    "VLLM_DP_SIZE": "3",
    "VLLM_DP_RANK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "4095",
    "VLLM_CPU_KVCACHE_SPACE": "0",
    "CPU_VISIBLE_MEMORY_NODES": "4095",
    "OMP_PLACES": "cores",
    "PYTHONPATH": "/missing",
    "PYTHONHOME": "/missing",
    "PYTHONWARNINGS": "error",
    "VIRTUAL_ENV": "/missing",
    "PIP_USER": "1",
    "PIP_TARGET": "/missing",
    "CC": "/missing/cc",
    "CXX": "/missing/c++",
    "CFLAGS": "-Werror",
    "HOME": "/missing",
    "HF_HOME": "/proc/missing",
    "XDG_CACHE_HOME": "/proc/missing",
    "TMPDIR": "/missing/with a space",
    "LC_ALL": "C",
    "COLUMNS": "5",
}


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", EXAMPLES / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_places_are_taken_from_the_shell(quickstart):
    kept = {"PATH": "/bin", "TMPDIR": "/short", "LANG": "C"}
    made = quickstart.environment({**HOSTILE, **kept})
    ours = ("HOME", "HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE", "VLLM_NO_USAGE_STATS")
    assert {k: v for k, v in made.items() if k not in ours} == kept
    assert made["HOME"] != HOSTILE["HOME"] and Path(made["HOME"]).is_dir()
    assert made["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "TMPDIR" not in quickstart.environment({"TMPDIR": "/" * 61}), "sockets go below it"


def test_setup_keeps_the_way_to_the_network_and_drops_the_rest():
    kept = {"http_proxy": NOWHERE, "PIP_INDEX_URL": NOWHERE, "PIP_CERT": __file__}
    dropped = ("PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "PIP_TARGET", "CC", "CXX", "CFLAGS")
    dropped += ("SSL_CERT_FILE",)
    done = subprocess.run(
        ["bash", "-euc", 'source "$0"; clean_environment; env', EXAMPLES / "setup_env.sh"],
        env={**os.environ, **HOSTILE, **kept},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    assert {name: seen[name] for name in kept} == kept
    assert not seen.keys() & set(dropped)
    assert seen["PIP_USER"] == "0"


def test_table_counts_experts_once_where_ranks_map_them_twice(quickstart):
    blocks = [(0, 10, 0), (0, 10, MIB), (1, 11, 0)]
    maps = [ExpertMap(*block, mapped_bytes=MIB, proportional_bytes=0) for block in blocks]
    assert quickstart.expert_bytes([maps, maps * 2]) == [2 * MIB, MIB]
    assert quickstart.expert_bytes([maps * 2, maps]) == [2 * MIB, MIB]


@pytest.mark.timeout(720)
def test_quickstart_works_in_a_hostile_environment():
    """Start quickstart.py as quickstart.sh does."""
    done = subprocess.run(
        [sys.executable, "-I", "-X", "utf8", EXAMPLES / "quickstart.py"],
        env={"PATH": os.environ["PATH"], **HOSTILE},
        capture_output=True,
        text=True,
        timeout=660,  # the quickstart itself gives up after 600 s
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = r"^ +(\d) +(\d) +\d+ +(\[\d+, \d+\)) +(\S+) MiB +(\S+) MiB$"
    first, second = re.findall(row, done.stdout, re.M)
    assert (first[0], *first[2:]) == ("0", "[0, 8)", "5.1", "5.1")
    assert (second[0], *second[2:]) == ("1", "[8, 16)", "5.1", "5.1")
    assert int(first[1]) + int(second[1]) == 8 and min(first[1], second[1]) > "0"
    assert done.stdout.endswith("Stopped; 0 processes had to be killed.\n")
