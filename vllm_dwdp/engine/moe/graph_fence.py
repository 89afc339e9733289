# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Where captured graphs meet the slots: vLLM calls its offloader around every capture and replay.

Nothing is offloaded; that place is used for its calls alone (vllm.model_executor.offloader). They
come before a capture and before each replay, and at the end of a capture, never in eager steps.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from vllm.model_executor.offloader.base import BaseOffloader, set_offloader


class Fenced(Protocol):
    """The scheduler."""

    def fence_graph(self) -> None: ...


class GraphFence(BaseOffloader):
    """Hands vLLM's calls to the scheduler."""

    def __init__(self, scheduler: Fenced) -> None:
        self._scheduler = scheduler

    @classmethod
    def install(cls, scheduler: Fenced) -> None:
        """After the model is built (it must not be wrapped), before graphs are captured."""
        set_offloader(cls(scheduler))

    def wrap_modules(
        self, modules_generator: Iterator[torch.nn.Module], prefix: str = ""
    ) -> list[torch.nn.Module]:
        return list(modules_generator)

    def sync_prev_onload(self) -> None:
        """Before a capture and before a replay."""
        self._scheduler.fence_graph()

    def join_after_forward(self) -> None:
        """At the end of a capture: the copies that its hooks noted are part of the graph."""
        self._scheduler.fence_graph()


def captured_tokens(vllm_config: Any) -> int:
    """Padded tokens of the largest step that vLLM captures in a graph; 0: none is captured."""
    return max(vllm_config.compilation_config.cudagraph_capture_sizes or (), default=0)


def decode_sizes(vllm_config: Any) -> list[int]:
    """Tokens of the decode steps to expect: captured sizes, or all sequences where none are."""
    captured = vllm_config.compilation_config.cudagraph_capture_sizes
    return list(captured or [vllm_config.scheduler_config.max_num_seqs])
