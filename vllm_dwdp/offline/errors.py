# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Errors that vllm_dwdp.LLM raises besides vLLM's own. Importing them doesn't import vLLM."""

from typing import Any


class RankDied(RuntimeError):
    """A rank could not start, or the last rank ended and none is left to run prompts."""


class PromptsFailed(RuntimeError):
    """Some prompts of a call got no output.

    outputs: what the call would have returned, in the order of the prompts, with None in place of
    each prompt that failed.
    """

    def __init__(self, message: str, outputs: list[Any]) -> None:
        super().__init__(message)
        self.outputs = outputs

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.outputs)


class NoRankLeft(PromptsFailed, RankDied):
    """The last rank ended while a call had prompts without an output."""
