# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Skips marked tests where the machine lacks what they need. The markers are in pyproject.toml."""

import os

import pytest
from support.hosts import reason_unavailable


def reason_not_root() -> str | None:
    return None if os.geteuid() == 0 else "needs root to become another user"


REASONS = {"hosts": reason_unavailable, "root": reason_not_root}
"""By marker, a function that returns why this machine can't run a test; None if it can."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, reason in REASONS.items():
        if item.get_closest_marker(marker) and (why := reason()):
            pytest.skip(why)
