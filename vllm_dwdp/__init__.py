# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Distributed Weight Data Parallelism (arXiv 2604.01621) for vLLM.

Importing this package imports vLLM only when `LLM` is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_dwdp.offline.errors import PromptsFailed, RankDied
    from vllm_dwdp.offline.llm import LLM

__all__ = ["LLM", "PromptsFailed", "RankDied"]


def __getattr__(name: str) -> Any:
    """Import a name of `__all__`, and for `LLM` also vLLM, when it is first used."""
    if name == "LLM":
        from vllm_dwdp.offline.llm import LLM

        return LLM
    if name in __all__:
        from vllm_dwdp.offline import errors as offline_errors

        return getattr(offline_errors, name)
    raise AttributeError(f"module 'vllm_dwdp' has no attribute {name!r}")
