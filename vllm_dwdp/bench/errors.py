# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Why something can't be measured."""


class BenchError(Exception):
    """One sentence: what was expected, what came, what to do."""
