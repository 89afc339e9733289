# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The fake driver; a test fails if it leaves a violation, an allocation or an open descriptor."""

import gc

import pytest
from support.fake_cuda import FakeCuda, num_memory_files


@pytest.fixture(scope="session")
def library():
    return FakeCuda()


@pytest.fixture
def fake(library):
    gc.collect()
    library.reset()
    yield library
    gc.collect()
    assert library.leaks == []
    assert library.violations == []
    assert num_memory_files() == 0
