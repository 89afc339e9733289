# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The planner: says beforehand, by arithmetic alone, whether DWDP pays on some hardware.

Nothing here imports vLLM. Only `calibrate` imports PyTorch, when it measures.
"""
