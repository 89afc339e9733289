# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A whole rank, without vLLM: its experts, the views of all experts, and how it fetches."""
