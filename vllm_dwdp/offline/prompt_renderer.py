# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Renders prompts for an engine by vLLM's own code, without adding them to the engine.

vllm.LLM renders a prompt and adds it to its engine in one call. Here vllm.LLM sees a stand-in for
its engine, which only checks and keeps what is added. So all prompts of a call are checked before
the first one runs.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from vllm_dwdp.offline.engine_wire import EngineWire
from vllm_dwdp.offline.prompt import RawPrompt, RenderedPrompt


class PromptRenderer:
    """Renders with an LLM's `enqueue` and `enqueue_chat`. Replaces the LLM's `llm_engine`."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._engine = _CheckingEngine(llm.llm_engine)
        self._has_cached_media = False
        llm.llm_engine = self._engine

    def render(self, raw: RawPrompt) -> RenderedPrompt:
        """Render and check one prompt. Raises what vllm.LLM raises for a prompt it refuses."""
        enqueue = self._llm.enqueue_chat if raw.kind == "chat" else self._llm.enqueue
        # vLLM takes a list of numbers for one prompt of token ids, but a tuple for several prompts.
        enqueue((raw.prompt,), raw.params, use_tqdm=False, **raw.options)
        rendered = self._engine.take()
        self._has_cached_media |= not can_be_sent(rendered)
        return rendered

    @contextlib.contextmanager
    def real_engine(self) -> Iterator[None]:
        """Within this context the LLM has its real engine, for methods that add and run prompts."""
        self._llm.llm_engine = self._engine.real
        try:
            yield
        finally:
            self._llm.llm_engine = self._engine

    def forget_what_was_not_sent(self) -> None:
        """Clear vLLM's cache of images, which it takes for sent once they are rendered."""
        if self._has_cached_media:
            self._llm.reset_mm_cache()
            self._has_cached_media = False


def can_be_sent(rendered: RenderedPrompt) -> bool:
    """Whether to send a prompt to ranks as rendered, as token ids.

    Prompts with images or embeddings are smaller as the caller gave them.
    """
    return bool(rendered.prompt["type"] == "token")


class _CheckingEngine:
    """An LLMEngine whose `add_request` only checks and keeps the request."""

    def __init__(self, engine: Any) -> None:
        self.real = engine
        self._wire = EngineWire()
        self._kept: RenderedPrompt | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def add_request(
        self,
        request_id: str,
        prompt: Any,
        params: Any,
        lora_request: Any = None,
        priority: int = 0,
    ) -> str:
        request = self.real.input_processor.process_inputs(
            request_id,
            prompt,
            params,
            supported_tasks=self.real.get_supported_tasks(),
            lora_request=lora_request,
            priority=priority,
        )
        self._wire.check(request)
        self._kept = RenderedPrompt(prompt, params, lora_request, priority)
        return request_id

    def take(self) -> RenderedPrompt:
        kept, self._kept = self._kept, None
        assert kept is not None, "vllm.LLM.enqueue adds a request for each prompt"
        return kept
