# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs `vllm-dwdp bench serve` on a model of random weights, on this host's cores.

    python tests/bench/host_throughput.py [--model '{"top_k": 2}'] [OPTIONS OF BENCH SERVE]

Without options it measures DWDP, `-tp 2`, two engines of one core each, and one engine on both
cores, undisturbed and while another process takes half of a core. The arms together need about
20 GiB of memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from random_moe import RandomMoe

ARMS = ("dwdp", "tp", "replicas", "one")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=json.loads, default={}, help="sizes of RandomMoe, as JSON")
    args, options = parser.parse_known_args()
    model = RandomMoe(**args.model)
    print(json.dumps({"model": asdict(model), "expert_bytes": model.expert_bytes}), flush=True)
    if "--arm" not in options:
        options = [part for arm in ARMS for part in ("--arm", arm)] + options
    with tempfile.TemporaryDirectory(prefix="dwdp-bench-") as folder:
        path = model.write(Path(folder) / "model")
        bench = [sys.executable, "-m", "vllm_dwdp.cli", "bench", "serve", str(path), "--disturb"]
        return subprocess.run([*bench, *options], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
