# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How often each layer runs in a step, learned from prefetch steps.

A slot is handed on after its layer's last use: a layer may run twice in a step (drafts), or less
often than before.
"""

from collections.abc import Sequence


class LayerUses:
    """following: by layer, the next one of its slot; see `_following` of the scheduler."""

    def __init__(self, following: Sequence[int]) -> None:
        self._following = following
        self._uses = [0] * len(following)
        self._expected = [1] * len(following)

    def begin(self, layer: int, uses: int = 0) -> None:
        """A copy for the layer starts, which has run `uses` times in this step already."""
        self._uses[layer] = uses

    def end_one(self, layer: int) -> bool:
        """The layer has run once more; whether that was the last time, as far as is known."""
        self._uses[layer] += 1
        return self._uses[layer] >= self._expected[layer]

    def learn(self, held: int, layer: int) -> int:
        """Note that `layer` found its slot filled for the layer `held`; returns its past runs.

        Those are the runs of `layer` in this step.
        """
        if self._following[held] == layer and self._uses[held]:  # it ran less often than before
            self._expected[held] = self._uses[held]
        elif self._following[layer] == held:  # it runs again after its slot was handed on
            self._expected[layer] += 1
            return self._expected[layer] - 1
        return 0
