# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Distributed Weight Data Parallelism (arXiv 2604.01621) for vLLM. Importing this is free."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_dwdp.engine.llm import LLM

__all__ = ["LLM"]


def __getattr__(name: str) -> Any:
    """`from vllm_dwdp import LLM` imports vLLM only when it is asked for."""
    if name == "LLM":
        from vllm_dwdp.engine.llm import LLM

        return LLM
    raise AttributeError(f"module 'vllm_dwdp' has no attribute {name!r}")
