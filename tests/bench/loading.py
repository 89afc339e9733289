# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The most memory that ranks of one host have while they load, by `load_concurrency`.

    python tests/bench/loading.py [--ranks 4] [--concurrency 4 1] [--rounds 3]

A server with all ranks starts on a model of random weights, ends, and starts again with the next
concurrency. Memory is sampled until the server is healthy. It counts anonymous and shared pages of
all processes, and not the checkpoint's file, which the kernel may drop. The KV cache is small, and
every rank runs on all cores. The last line is JSON, with medians over the rounds.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from random_moe import RandomMoe
from support.server import Server

from vllm_dwdp.memory.residency import anonymous_and_shared_bytes

MODEL = RandomMoe(num_layers=4, num_experts=32, hidden_size=2048, expert_size=1024)
"""1.6 GB of experts, a layer of which is a quarter."""

KV_CACHE_BYTES = 64 << 20
SAMPLE_EVERY_S = 0.05


def bytes_of(server: Server) -> int:
    """Bytes of all processes of a server without the pages of files."""
    found = 0
    for process in server.family():
        with contextlib.suppress(OSError):
            found += anonymous_and_shared_bytes(process.pid)
    return found


class Peak(threading.Thread):
    """A thread that samples the memory of a server's processes."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._is_over = threading.Event()
        self.num_bytes = 0

    def run(self) -> None:
        while not self._is_over.wait(SAMPLE_EVERY_S):
            self.num_bytes = max(self.num_bytes, bytes_of(self._server))

    def stop(self) -> int:
        self._is_over.set()
        self.join()
        return self.num_bytes


def start(model: Path, ranks: int, concurrency: int, log: Path) -> dict[str, float]:
    """Start and end a server; returns its peak and final memory in MiB, and its seconds."""
    config = {"dwdp": {"load_concurrency": concurrency}}
    options = ("--data-parallel-size", str(ranks), "--distributed-executor-backend", "dwdp")
    options += ("--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8")
    options += ("--kv-cache-memory-bytes", str(KV_CACHE_BYTES))
    options += ("--additional-config", json.dumps(config))
    began = time.monotonic()
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    server = Server(model, *options, log=log, environment=environment)
    try:
        peak = Peak(server)
        peak.start()
        server.wait_until_ready()
        seconds = time.monotonic() - began
        most = peak.stop()
        last = bytes_of(server)
    finally:
        server.stop()
    return {"peak_mib": most / 2**20, "ready_mib": last / 2**20, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[4, 1])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: dict[int, list[dict[str, float]]] = {number: [] for number in args.concurrency}
    with tempfile.TemporaryDirectory() as name:
        model = MODEL.write(Path(name) / "random")
        for round_ in range(args.rounds):
            for number in args.concurrency:
                log = Path(name) / f"{number}-{round_}.log"
                found[number].append(start(model, args.ranks, number, log))
                print(number, found[number][-1], flush=True)
    medians = {
        number: {key: round(statistics.median(r[key] for r in runs)) for key in runs[0]}
        for number, runs in found.items()
    }
    layer_mib = MODEL.expert_bytes / MODEL.num_layers / 2**20
    print(json.dumps({"by_concurrency": medians, "layer_mib": round(layer_mib)}))


if __name__ == "__main__":
    main()
