# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How many descriptors a rank needs, and what it does about the limit on them."""

import subprocess
import sys

import pytest

from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.memory.limits import num_descriptors_needed

SCRIPT = """
import resource
from vllm_dwdp.memory.limits import LimitError, ensure_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (300, {hard}))
try:
    ensure_descriptors(1000)
except LimitError as error:
    print(error)
else:
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1000)
"""


@pytest.mark.parametrize(("hard", "said"), [(4000, "True"), (400, "hard limit is 400; raise it")])
def test_descriptor_limit(hard, said):
    command = [sys.executable, "-c", SCRIPT.format(hard=hard)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert said in done.stdout


def test_descriptors_of_blocks_are_all_held_on_the_host_and_a_layers_on_a_gpu():
    page = 4096
    placement = Placement.make(num_experts=8, dwdp_size=2)
    tensor = TensorLayout(ExpertTensor("w13_weight", page), placement, page)
    layout = RankLayout(((tensor, tensor),) * 5, rank=0)
    of_peers_and_fringes = 2 + 2
    assert num_descriptors_needed(layout, has_files=True) == 5 * 2 + of_peers_and_fringes
    assert num_descriptors_needed(layout, has_files=False) == 2 + of_peers_and_fringes
