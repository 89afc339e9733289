# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares what `vllm-dwdp plan --calibrate` predicts for this machine with what bench measured.

    python tests/bench/host_throughput.py --results results.json
    python tests/bench/plan_beside_bench.py results.json [--model JSON]

--model must be the one of host_throughput.py. A rank with half of a core taken counts as half as
fast. The last line is JSON. It exits with 1 if a ratio is more than 20 % off.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from random_moe import RandomMoe

ARMS = {"tp": "dwdp_over_tensor_parallel", "replicas": "dwdp_over_replicas"}
SLOWEST = {"undisturbed": 1.0, "disturbed": 0.5}
ALLOWED = 0.2


def predicted(model: Path, measured: dict[str, Any], profile: Path, slowest: float) -> Any:
    """What `plan --json` says of throughput, for the load that was measured."""
    load = measured["load_of_a_client"]
    ranks = measured["ranks"]
    longest = load["input_tokens"] * (1 + load["variation"])
    command = [sys.executable, "-m", "vllm_dwdp.cli", "plan", str(model), "--json"]
    command += ["--hardware", str(profile), "--dwdp-size", str(ranks)]
    command += ["--isl", str(round(longest)), "--slowest", str(slowest)]
    command += ["--job-prompts", str(ranks * load["num_prompts"])]
    command += ["--max-in-flight", str(load["max_concurrency"])]
    command += ["--length-ratio", str((1 - load["variation"]) / (1 + load["variation"]))]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(said)["throughput"]


def calibrate(model: Path, ranks: int, profile: Path) -> None:
    """Measure this machine, and write its profile."""
    command = [sys.executable, "-m", "vllm_dwdp.cli", "plan", str(model), "--calibrate"]
    command += ["--profile", str(profile), "--dwdp-size", str(ranks), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path, help="what bench serve wrote, see above")
    parser.add_argument("--model", type=json.loads, default={}, help="sizes of RandomMoe, as JSON")
    args = parser.parse_args()
    measured = json.loads(args.results.read_text())
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = RandomMoe(**args.model).write(Path(folder) / "model")
        profile = Path(folder) / "profile.yaml"
        calibrate(model, measured["ranks"], profile)
        for variant, by_arm in measured["variants"].items():
            plan = predicted(model, measured, profile, SLOWEST[variant])
            for arm, name in ARMS.items():
                bench = by_arm[arm]["dwdp_over"]["median"]
                off = plan[name] / bench - 1
                print(f"DWDP over {arm}, {variant}: plan {plan[name]:.2f}, bench {bench:.2f}")
                found[f"{arm}, {variant}"] = round(off, 3)
    print(json.dumps({"plan_over_bench_minus_1": found, "allowed": ALLOWED}))
    return int(any(abs(off) > ALLOWED for off in found.values()))


if __name__ == "__main__":
    sys.exit(main())
