# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs one family with stock vLLM and with dwdp's ranks, and says how it ended."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from differences import difference
from engine_start import start
from families import FAMILIES
from log_errors import cause, refusal
from random_checkpoint import write_checkpoint

EQUAL = "equal"
FAILURES = ("DIFFERENT", "ERROR")
START_S = 300.0


@dataclass(frozen=True)
class Job:
    """How each family runs. redundancy: how many copies of the experts all ranks together own."""

    experts: int = 8
    ranks: int = 2
    redundancy: float = 1.0
    fetch: str = "selective"
    quantization: str | None = None

    @property
    def dwdp_options(self) -> dict[str, Any]:
        owned = min(math.ceil(self.experts * self.redundancy / self.ranks), self.experts)
        config = {"fetch": self.fetch, "num_experts_per_worker": owned}
        return {"additional_config": {"dwdp": config}}


@dataclass(frozen=True)
class Verdict:
    """The outcome of a family: "equal", or a word, a colon and the reason; see run.py."""

    family: str
    architecture: str
    outcome: str
    seconds: float

    @property
    def is_failure(self) -> bool:
        return self.outcome.startswith(FAILURES)


def run_family(name: str, job: Job, folder: Path) -> Verdict:
    """Run a family; its checkpoint and the logs go to `folder`."""
    begin = time.monotonic()
    architecture = write_checkpoint(folder / "model", FAMILIES[name], job.experts)
    options = FAMILIES[name].options | {
        "model": str(folder / "model"),
        "quantization": job.quantization,
        "max_model_len": 256,
        "enforce_eager": True,
        "disable_log_stats": False,
    }
    outcome = compared(options, job, folder)
    return Verdict(name, architecture, outcome, time.monotonic() - begin)


def compared(options: dict[str, Any], job: Job, folder: Path) -> str:
    """Run a checkpoint with stock vLLM, then with ranks if it could; returns the outcome."""
    expected = start(options, None, START_S, folder / "stock")
    if "error" in expected:
        why = cause((folder / "stock.log").read_text(errors="replace")) or expected["error"]
        return f"stock fails: {one_line(why)}"
    if len({token for output in expected["outputs"] for token in output["tokens"]}) == 1:
        return "ERROR: stock vLLM always gives the same token, so tokens would show nothing"
    if "speculative_config" in options and not expected["accepted"]:
        return "ERROR: stock vLLM accepts no draft, so a wrong draft would show nothing"
    found = start(options | job.dwdp_options, job.ranks, START_S, folder / "ranks")
    log = (folder / "ranks.log").read_text(errors="replace")
    return judged(found, expected, log, job.fetch)


def judged(found: dict[str, Any], expected: dict[str, Any], log: str, fetch: str) -> str:
    """The outcome, from what ranks found, what stock vLLM found, and the log of the ranks."""
    if "error" in found:
        sentence = refusal(found["error"], log)
        return f"refused: {sentence}" if sentence else f"ERROR: {one_line(found['error'])}"
    if where := difference(found["outputs"], expected["outputs"]):
        return f"DIFFERENT: {where}"
    if found["accepted"] != expected["accepted"]:
        return f"DIFFERENT: {found['accepted']} drafts accepted, expected {expected['accepted']}"
    if idle := why_idle(found["stats"], fetch):
        return f"ERROR: {idle}"
    return EQUAL


def why_idle(stats: list[dict[str, Any]], fetch: str) -> str | None:
    """Why the outputs don't show that ranks used their peers' experts; None if they do."""
    for rank, counts in enumerate(stats):
        if not any(counts["forwards"]):
            return f"rank {rank} ran no MoE layer"
        copied = counts["bytes_fetched"].get(fetch)  # None for modes that needn't copy
        if copied is not None and not any(copied):
            return f"rank {rank} copied no expert"
    return None


def one_line(text: str) -> str:
    return " ".join(text.split())
