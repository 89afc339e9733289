# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The only room that knows vLLM: executor, worker, routed experts, loading, layer hooks, LLM."""
