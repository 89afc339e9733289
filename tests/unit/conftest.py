# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Hypothesis sets no deadline for an example, since machines may be busy."""

from hypothesis import settings

settings.register_profile("busy machines", deadline=None)
settings.load_profile("busy machines")
