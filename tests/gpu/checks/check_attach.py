# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Times how long a rank takes to attach a model of 58 layers and 256 experts, as DeepSeek-R1 has.

Its experts are small enough to fit the memory of one GPU.
"""

import functools
import time

from figures import say
from parts import Need, part, run_parts
from rank_pair import RankPair

NUM_LAYERS, NUM_EXPERTS = 58, 256
PAGES_OF_A_ROW = {"w13_weight": 7 / 8, "w2_weight": 7 / 16}
"""Size of an expert in pages of the driver, so that any driver cuts views as a GPU's does."""


@functools.cache
def attached(device):
    return RankPair.of_pages(device, PAGES_OF_A_ROW, num_experts=NUM_EXPERTS, num_layers=NUM_LAYERS)


@part("attach")
def attach(device):
    pair = attached(device)
    say(
        f"attach {NUM_LAYERS} layers x {NUM_EXPERTS} experts",
        seconds=round(pair.seconds_to_attach, 2),
        seconds_with_slots=round(pair.seconds_to_bind, 2),
        maps=pair.num_maps,
        private_mib=pair.num_private_bytes / 2**20,
        slot_mib=pair.slots.num_bytes / 2**20,
        expected={"seconds": (None, 10), "seconds_with_slots": (None, 15)},
    )


@part("copy plans")
def copy_plans(device):
    """Makes the copies of all layers, without tables for the gather kernel."""
    pair = attached(device)
    start = time.perf_counter()
    pair.make_scheduler()
    seconds = round(time.perf_counter() - start, 2)
    say(f"copy plans of {NUM_LAYERS} layers", seconds=seconds, expected={"seconds": (None, 5)})


@part("gather tables", Need.TRITON)
def gather_tables(device):
    pair = attached(device)
    start = time.perf_counter()
    pair.make_scheduler(device.make_chosen(None, 2))
    seconds = round(time.perf_counter() - start, 2)
    say(f"gather tables of {NUM_LAYERS} layers", seconds=seconds, expected={"seconds": (None, 15)})


if __name__ == "__main__":
    run_parts(attach, copy_plans, gather_tables)
