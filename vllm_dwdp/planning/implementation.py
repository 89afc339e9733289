# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What differs between implementations of DWDP, as far as it changes the time of a step."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Implementation:
    """reads_peers_at_once: a rank reads all its peers at the same time, in small slices. Ranks are
        then taken not to slow each other at a source.
    merges_experts: before each layer a rank copies its own experts beside the fetched ones.
    chunks_prompts: prompts are cut to fill each step.
    may_skip: steps too small to hide a copy of all experts fetch only those that they chose.
    """

    reads_peers_at_once: bool
    merges_experts: bool
    chunks_prompts: bool
    may_skip: bool


VLLM_DWDP = Implementation(
    reads_peers_at_once=False,
    merges_experts=False,
    chunks_prompts=True,
    may_skip=True,
)
"""This project, which reads one slice at a time: docs/scheduler.md."""

PUBLISHED = Implementation(
    reads_peers_at_once=False,
    merges_experts=True,
    chunks_prompts=False,
    may_skip=False,
)
"""TensorRT-LLM as in Tables 1 and 3 of arXiv 2604.01621."""

PUBLISHED_SLICED = dataclasses.replace(PUBLISHED, reads_peers_at_once=True)
"""TensorRT-LLM with slices of 1 MB, as in Table 4."""
