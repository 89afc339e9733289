# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Examples of these tests may take as long as a busy machine needs for them."""

from hypothesis import settings

settings.register_profile("busy machines", deadline=None)
settings.load_profile("busy machines")
