# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How long layers take if some copies are longer than others.

* A rank has two slots (constants.NUM_SLOTS).
* The copy for layer l begins when the copy for layer l - 1 has ended and the experts of layer l - 2
  have been computed, which frees the slot.
* The experts of layer l begin when its copy has ended. So a long copy costs nothing if the copies
  around it are short enough.
"""

from collections.abc import Sequence


def mean_layer_seconds(
    before_experts_s: float, experts_s: float, copies_s: Sequence[float]
) -> float:
    """Mean seconds of a layer that computes `before_experts_s`, then its experts for `experts_s`.

    copies_s: seconds of each layer's copy, from the second layer on. The first layer's experts are
    in their slot already, so no layer waits for the last copy.
    """
    total_s = 0.0
    copy_end_s = 0.0  # when this layer's copy ends, after the layer before; below 0: earlier
    for next_copy_s in copies_s:
        layer_s = max(before_experts_s, copy_end_s) + experts_s
        total_s += layer_s
        copy_end_s = max(copy_end_s, 0.0) + next_copy_s - layer_s
    return total_s / len(copies_s)
