# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Offline inference in one program: the LLM class, and the processes of its ranks."""
