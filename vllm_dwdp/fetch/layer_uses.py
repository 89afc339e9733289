# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Learns from prefetch steps how often each layer runs in a step.

A slot goes to its next layer after the last run of the layer that it holds. A layer may run twice
in a step (drafts), or less often than before.
"""

from collections.abc import Sequence


class LayerUses:
    """Counts the runs of each layer in a step, and how many to expect.

    following: by layer, the next layer of its slot; see `_following` in fetch/scheduler.py.
    """

    def __init__(self, following: Sequence[int]) -> None:
        self._following = following
        self._uses = [0] * len(following)
        self._expected = [1] * len(following)

    def begin(self, layer: int, uses: int = 0) -> None:
        """Note that a copy for a layer starts, which has run `uses` times in this step."""
        self._uses[layer] = uses

    def end_one(self, layer: int) -> bool:
        """Note one more run of a layer; returns whether no other is expected in this step."""
        self._uses[layer] += 1
        return self._uses[layer] >= self._expected[layer]

    def learn(self, held: int, layer: int) -> int:
        """Note that `layer` found its slot filled for the layer `held`.

        Returns how often `layer` has run in this step already.
        """
        if self._following[held] == layer and self._uses[held]:  # `held` ran less often than before
            self._expected[held] = self._uses[held]
        elif self._following[layer] == held:  # `layer` runs again after its slot was handed on
            self._expected[layer] += 1
            return self._expected[layer] - 1
        return 0
