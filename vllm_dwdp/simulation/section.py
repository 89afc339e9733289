# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How sections of a scenario are read."""

from pydantic import ConfigDict

SECTION = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""A section refuses keys that it doesn't know, and values of another type (`'8'` for 8)."""
