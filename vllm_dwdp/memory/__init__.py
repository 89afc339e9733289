# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Owners over the compiled core: this rank's experts, views over everyone's, kernel limits."""
