# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Distributed Weight Data Parallelism (arXiv 2604.01621) for vLLM. Importing this is free."""
