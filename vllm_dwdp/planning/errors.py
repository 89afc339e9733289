# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The error for input that no plan can be made from."""


class PlanError(ValueError):
    """The input is wrong; the message says what was expected, what came, and what to do."""
