# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Makes of a prompt what an engine takes, by vLLM's own code, without giving it to the engine.

vllm.LLM renders a prompt and adds it to its engine in one call. Here the engine that vllm.LLM sees
checks what it is given and keeps it, so that all prompts of a call are known to be good before the
first one runs.
"""

from typing import Any

from vllm_dwdp.offline.engine_wire import EngineWire
from vllm_dwdp.offline.prompt import RawPrompt, RenderedPrompt


class PromptRenderer:
    """Takes over an LLM's `enqueue` and `enqueue_chat`; its engine stays as it was."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._engine = _CheckingEngine(llm.llm_engine)
        self._has_cached_media = False
        llm.llm_engine = self._engine

    def render(self, raw: RawPrompt) -> RenderedPrompt:
        """Raises what vllm.LLM raises for a prompt that it refuses."""
        enqueue = self._llm.enqueue_chat if raw.kind == "chat" else self._llm.enqueue
        # A tuple is never taken for one prompt, as a list of token ids is.
        enqueue((raw.prompt,), raw.params, use_tqdm=False, **raw.options)
        rendered = self._engine.take()
        self._has_cached_media |= not can_be_sent(rendered)
        return rendered

    def forget_what_was_not_sent(self) -> None:
        """vLLM sends images once and then their names; none of those rendered here was sent."""
        if self._has_cached_media:
            self._llm.reset_mm_cache()
            self._has_cached_media = False


def can_be_sent(rendered: RenderedPrompt) -> bool:
    """Token ids are as good on any rank; images and embeddings are smaller as they were given."""
    return bool(rendered.prompt["type"] == "token")


class _CheckingEngine:
    """An LLMEngine whose `add_request` only checks and keeps the request."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._wire = EngineWire()
        self._kept: RenderedPrompt | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add_request(
        self,
        request_id: str,
        prompt: Any,
        params: Any,
        lora_request: Any = None,
        priority: int = 0,
    ) -> str:
        request = self._engine.input_processor.process_inputs(
            request_id,
            prompt,
            params,
            supported_tasks=self._engine.get_supported_tasks(),
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
