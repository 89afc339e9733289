# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""From vLLM's options to a job of independent ranks: what is completed, and what is refused."""
