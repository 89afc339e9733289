# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The error of this room."""


class ScenarioError(ValueError):
    """A scenario or a trace can't be simulated; the message says what to change."""
