# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Counts how often tokens choose each expert of each layer, on the device that routes them."""

import contextlib
from collections.abc import Iterator, Sequence

import torch


class ExpertCounts:
    """The counts of one rank. The host waits for the device only when it reads them.

    num_experts: of each layer.
    """

    def __init__(self, num_experts: Sequence[int], device: str) -> None:
        self._num_experts = num_experts
        # The first column counts padding, whose ids are -1.
        shape = len(num_experts), 1 + max(num_experts)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=device)
        self._one = torch.ones(1, dtype=torch.int64, device=device)
        # Made in this thread: in a new one the GPU of CUDA's choice is the first of the host.
        self._stream = torch.cuda.Stream() if self._counts.is_cuda else None

    def add(self, layer_idx: int, ids: torch.Tensor) -> None:
        """Count the experts that a layer's tokens chose; ids: [num_tokens, top_k], int32 or int64.

        Adds work to the current stream; a CUDA graph may capture it.
        """
        columns = ids.flatten() + 1
        self._counts[layer_idx].index_add_(0, columns, self._one.expand(columns.numel()))

    def clear(self) -> None:
        """Begin again from 0."""
        self._counts.zero_()

    def read(self) -> list[list[int]]:
        """The counts by layer and by expert. Any thread may call this; steps don't wait for it."""
        on_stream = contextlib.nullcontext() if self._stream is None else self._stream_of_reads()
        with on_stream:
            rows = self._counts.cpu().tolist()
        return [row[1 : 1 + number] for row, number in zip(rows, self._num_experts, strict=True)]

    @contextlib.contextmanager
    def _stream_of_reads(self) -> Iterator[None]:
        with torch.cuda.device(self._counts.device), torch.cuda.stream(self._stream):
            yield
