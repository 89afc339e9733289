# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Turns vLLM's options into a job of independent ranks, and refuses options that can't work."""
