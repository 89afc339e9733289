# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The soft limit on descriptors is raised up to the hard limit; needing more is an error."""

import subprocess
import sys

import pytest

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
