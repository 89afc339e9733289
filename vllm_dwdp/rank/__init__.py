# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The parts of a rank that need no vLLM: its experts, its views of all experts, its fetching."""
