# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The only part that uses vLLM's internals: executor, worker, routed experts, loading, hooks."""
