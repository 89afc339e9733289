# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The plain answer: use DWDP, use it only for prefill, or don't."""

from dataclasses import dataclass
from enum import StrEnum

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.throughput import Throughput


class Answer(StrEnum):
    USE = "use it"
    PREFILL_ONLY = "use it only for prefill"
    NO = "don't"


@dataclass(frozen=True)
class Verdict:
    """The answer, and in sentences why."""

    answer: Answer
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """What the answer follows from.

    decode_cost: largest time of a decode step over that with expert parallelism, over batch sizes.
    fits: whether the model fits with DWDP. replicas_fit: whether a rank has room for the whole
    model and a KV cache of its own. tokens, recommended: tokens in a step as asked for, and enough
    for DWDP to pay; None: no number is.
    """

    speed: Throughput
    decode_cost: float
    fits: bool
    replicas_fit: bool
    tokens: float
    recommended: int | None


def judge(evidence: Evidence) -> Verdict:
    """DWDP must fit, and beat everything else that fits; then the cost of decode decides."""
    if not evidence.fits:
        return Verdict(Answer.NO, ("The model doesn't fit; use more ranks or smaller weights.",))
    name, gain = best_gain(evidence)
    reason = f"Prefill runs at {gain:.2f}x of the best alternative, {name}."
    if gain < constants.MIN_GAIN:
        return Verdict(Answer.NO, (reason, _what_would_help(evidence, name)))
    decode = (
        f"Decode steps take up to {evidence.decode_cost:.1f} times as long as with expert "
        "parallelism."
    )
    dear = evidence.decode_cost > constants.MAX_DECODE_COST
    return Verdict(Answer.PREFILL_ONLY if dear else Answer.USE, (reason, decode))


def best_gain(evidence: Evidence) -> tuple[str, float]:
    """The fastest alternative that fits, and DWDP's throughput over its throughput."""
    speed = evidence.speed
    others = {
        "expert parallelism": speed.expert_parallel,
        "tensor parallelism": speed.tensor_parallel,
    }
    if evidence.replicas_fit:
        others["replicas"] = speed.replicas
    best = max(others, key=lambda name: others[name])
    return best, speed.dwdp / others[best]


def _what_would_help(evidence: Evidence, best: str) -> str:
    if best == "replicas":
        return "A rank has room for the whole model: separate servers are simpler."
    if evidence.recommended is None:
        return "No size of step changes that with this group, hardware and length of prompts."
    if evidence.recommended <= evidence.tokens:
        return "Larger steps don't change that."
    return (
        f"A step has {evidence.tokens:.0f} tokens; DWDP pays from {evidence.recommended} on, if so "
        "many are in flight on each rank."
    )
