# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares what ranks generated with what stock vLLM did; nothing may differ by a single bit."""

from typing import Any

Outputs = list[dict[str, Any]]
"""For each prompt {"tokens", "logprobs"}, see engine_child.py."""


def difference(found: Outputs, expected: Outputs) -> str | None:
    """Where outputs differ first, in tokens if any of them do; None if they are equal."""
    if len(found) != len(expected):
        return f"{len(found)} outputs, expected {len(expected)}"
    pairs = list(enumerate(zip(found, expected, strict=True)))
    for compare in (_tokens, _logprobs):
        for prompt, (output, reference) in pairs:
            if where := compare(output, reference):
                return f"prompt {prompt}, {where}"
    return None


def _tokens(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    pair = found["tokens"], expected["tokens"]
    if pair[0] == pair[1]:
        return None
    step = _first(*pair)
    return f"token {step}: {pair[0][step:]}, expected {pair[1][step:]}"


def _logprobs(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    pair = found["logprobs"], expected["logprobs"]
    if pair[0] == pair[1]:
        return None
    step = _first(*pair)
    return f"log-probabilities of token {step}: {pair[0][step]}, expected {pair[1][step]}"


def _first(found: list, expected: list) -> int:
    """The first index at which lists differ, of which one may be the beginning of the other."""
    pairs = enumerate(zip(found, expected, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(found), len(expected)))
