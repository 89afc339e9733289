# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares the tokens/s of two DWDP ranks with other ways to use a host's two cores.

The other deployments are stock `-tp 2`, two unsharded engines, and one engine on both cores. Each
round measures every deployment twice: undisturbed, and while another process takes half of one
core. All deployments stay loaded, and all but the measured one are stopped (SIGSTOP). In a round
all get the same requests. The last line is JSON with ratios of medians. All deployments together
need about 20 GiB of memory; `--beside` names those to start beside DWDP.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clients import NUM_CLIENTS, Load, measure
from deployments import COMMON, RECIPES, Deployment, deployments
from disturbance import BUSY_S, CORE, PERIOD_S, disturbance
from random_moe import RandomMoe

from vllm_dwdp.memory.residency import group_resident_bytes

VARIANTS = ("undisturbed", "disturbed")
WARM_UP = Load(num_prompts=6)


@dataclass
class Results:
    """Results of one variant, by deployment: tokens/s of each round, CPU seconds of all rounds."""

    tokens_per_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu_seconds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def summary(self) -> dict[str, float]:
        medians = {name: statistics.median(rounds) for name, rounds in self.tokens_per_s.items()}
        ratios = {
            f"vs_{name}": round(medians["dwdp"] / other, 3)
            for name, other in medians.items()
            if name != "dwdp"
        }
        return ratios | {f"{name}_tokens_per_s": round(m, 1) for name, m in medians.items()}


class Comparison:
    """Measures all deployments in rounds, each in every variant."""

    def __init__(self, made: dict[str, Deployment], model: Path, load: Load) -> None:
        self._made, self._model, self._load = made, model, load
        self.results = {variant: Results() for variant in VARIANTS}

    def run(self, num_rounds: int) -> None:
        """Warm all deployments up, then run the rounds; each starts with another deployment."""
        names = list(self._made)
        for name in names:
            measure(self._made[name], self._model, WARM_UP, seed=0)
        for round_idx in range(num_rounds):
            first = round_idx % len(names)
            for name in names[first:] + names[:first]:
                for variant in VARIANTS:
                    self._measure(name, variant, round_idx)

    def _measure(self, name: str, variant: str, round_idx: int) -> None:
        deployment, results = self._made[name], self.results[variant]
        before = deployment.cpu_seconds()
        with disturbance() if variant == "disturbed" else contextlib.nullcontext() as other:
            seed = NUM_CLIENTS * (round_idx + 1)
            tokens_per_s = measure(deployment, self._model, self._load, seed)
            share = f", {other.share():.0%} of core {CORE} taken" if other else ""
        results.tokens_per_s[name].append(tokens_per_s)
        results.cpu_seconds[name] += deployment.cpu_seconds() - before
        line = f"round {round_idx + 1}: {name:9} {tokens_per_s:8.1f} tokens/s {variant}{share}"
        print(line, flush=True)


def expert_bytes_ratio(dwdp: Deployment, model: RandomMoe) -> float:
    """Resident expert memory of all ranks, divided by the size of one copy of the experts."""
    processes = [process.pid for process in dwdp.servers[0].family()]
    return round(group_resident_bytes(processes) / model.expert_bytes, 4)


def print_configuration(model: RandomMoe, load: Load, num_rounds: int) -> None:
    print(json.dumps({"model": asdict(model), "expert_bytes": model.expert_bytes}))
    print(json.dumps({"load_per_client": asdict(load), "clients": NUM_CLIENTS}))
    print(json.dumps({"rounds": num_rounds, "cores": os.cpu_count(), "options": COMMON, **RECIPES}))
    print(json.dumps({"disturbed_core": CORE, "busy_s": BUSY_S, "of_s": PERIOD_S}), flush=True)


def print_results(comparison: Comparison, expert_bytes: float) -> None:
    """Print a line of CPU seconds for each variant and deployment, then the ratios."""
    for variant, results in comparison.results.items():
        for name, used in results.cpu_seconds.items():
            seconds = {title: round(s, 1) for title, s in used.most_common()}
            print(json.dumps({"cpu_seconds": seconds, "deployment": name, "variant": variant}))
    ratios = {variant: results.summary() for variant, results in comparison.results.items()}
    print(json.dumps({**ratios, "expert_bytes_ratio": expert_bytes}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    others = [name for name in RECIPES if name != "dwdp"]
    parser.add_argument("--beside", nargs="+", choices=others, default=others)
    parser.add_argument("--load", type=json.loads, default={}, help="fields of Load, as JSON")
    parser.add_argument("--model", type=json.loads, default={}, help="sizes of RandomMoe, as JSON")
    parser.add_argument("--logs", type=Path, help="folder for the servers' logs")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override --kv-cache-memory-bytes
    load, model = Load(**args.load), RandomMoe(**args.model)
    print_configuration(model, load, args.rounds)
    with tempfile.TemporaryDirectory(prefix="dwdp-bench-") as folder:
        logs = args.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        path = model.write(Path(folder) / "model")
        with deployments(path, logs, ["dwdp", *args.beside]) as made:
            comparison = Comparison(made, path, load)
            comparison.run(args.rounds)
            print_results(comparison, expert_bytes_ratio(made["dwdp"], model))


if __name__ == "__main__":
    main()
