# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Methods of vllm.LLM that ranks run on batches of prompts: pooling, scores, beams."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import vllm

from vllm_dwdp.offline.prompt import bound_options

if TYPE_CHECKING:
    from vllm import (
        ClassificationRequestOutput,
        EmbeddingRequestOutput,
        PoolingRequestOutput,
        ScoringRequestOutput,
    )


class BatchMethods:
    """A base of vllm_dwdp.LLM: the methods take what vllm.LLM's take, and raise what they raise.

    A prompt that vLLM refuses ends the call while others may have run. PromptsFailed, with the
    other outputs, is raised if prompts end their ranks.
    """

    @abstractmethod
    def _run_batches(self, method: str, arguments: dict[str, Any]) -> list[Any]:
        """Run a method of vllm.LLM over all ranks; arguments: by name."""

    def encode(self, *args: Any, **options: Any) -> "list[PoolingRequestOutput]":
        """As vllm.LLM.encode."""
        return self._run_batches("encode", bound_options(vllm.LLM.encode, *args, **options))

    def embed(self, *args: Any, **options: Any) -> "list[EmbeddingRequestOutput]":
        """As vllm.LLM.embed."""
        return self._run_batches("embed", bound_options(vllm.LLM.embed, *args, **options))

    def classify(self, *args: Any, **options: Any) -> "list[ClassificationRequestOutput]":
        """As vllm.LLM.classify."""
        return self._run_batches("classify", bound_options(vllm.LLM.classify, *args, **options))

    def score(self, *args: Any, **options: Any) -> "list[ScoringRequestOutput]":
        """As vllm.LLM.score. For an embedding model, each batch embeds `data_1` again."""
        return self._run_batches("score", bound_options(vllm.LLM.score, *args, **options))

    def beam_search(self, *args: Any, **options: Any) -> list[Any]:
        """As vllm.LLM.beam_search; `concurrency_limit` holds for each rank."""
        options = {"use_tqdm": False} | options
        arguments = bound_options(vllm.LLM.beam_search, *args, **options)
        return self._run_batches("beam_search", arguments)
