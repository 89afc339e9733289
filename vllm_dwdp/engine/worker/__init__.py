# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The executor and the workers of vLLM that start a rank, and what a rank does while it starts."""
