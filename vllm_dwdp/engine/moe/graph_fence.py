# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tells the scheduler of every capture and every replay of a CUDA graph.

vLLM calls its offloader (vllm.model_executor.offloader) before and at the end of a capture and
before each replay, but not in eager steps. dwdp installs an offloader for the sake of these calls;
it offloads nothing.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from vllm.model_executor.offloader.base import BaseOffloader, set_offloader


class Fenced(Protocol):
    """The part of the scheduler that GraphFence calls."""

    def fence_graph(self) -> None: ...


class GraphFence(BaseOffloader):
    """Passes vLLM's calls on to the scheduler."""

    def __init__(self, scheduler: Fenced) -> None:
        self._scheduler = scheduler

    @classmethod
    def install(cls, scheduler: Fenced) -> None:
        """Make a new fence vLLM's offloader: after the model is built, before graphs are captured.

        An offloader that is there earlier would be asked to wrap the model's modules.
        """
        set_offloader(cls(scheduler))

    def wrap_modules(
        self, modules_generator: Iterator[torch.nn.Module], prefix: str = ""
    ) -> list[torch.nn.Module]:
        return list(modules_generator)

    def sync_prev_onload(self) -> None:
        """vLLM calls this before a capture and before each replay."""
        self._scheduler.fence_graph()

    def join_after_forward(self) -> None:
        """vLLM calls this at the end of a capture."""
        self._scheduler.fence_graph()


def captured_tokens(vllm_config: Any) -> int:
    """Padded tokens of the largest step that vLLM captures in a graph; 0 if it captures none."""
    return max(vllm_config.compilation_config.cudagraph_capture_sizes or (), default=0)


def decode_sizes(vllm_config: Any) -> list[int]:
    """Token counts of decode steps: the captured sizes, or `max_num_seqs` if none are captured."""
    captured = vllm_config.compilation_config.cudagraph_capture_sizes
    return list(captured or [vllm_config.scheduler_config.max_num_seqs])
