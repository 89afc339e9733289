# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds out what this host and this installation can do for dwdp, one line for each check."""
