# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a rank does with the prompts it is sent: render them, or run them."""

import pickle
from multiprocessing.connection import Connection
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from vllm_dwdp.engine.offline_prompt import RawPrompt, RenderedPrompt
from vllm_dwdp.engine.prompt_renderer import PromptRenderer, can_be_sent
from vllm_dwdp.engine.rank_inbox import RankInbox


class RankLoop:
    """Feeds the engine between steps, so that its batch is refilled as requests finish."""

    def __init__(self, llm: Any, pipe: Connection, inbox: RankInbox) -> None:
        self._engine = llm.llm_engine
        self._renderer = PromptRenderer(llm)
        self._pipe = pipe
        self._inbox = inbox
        self._running: set[int] = set()

    def run(self) -> None:
        """Until the process is ended."""
        while True:
            self._take_messages()
            self._step()

    def _take_messages(self) -> None:
        """Take what came; wait for something to run when idle."""
        while not self._running or not self._inbox.is_empty():
            kind, *body = self._inbox.take()
            if kind == "render":
                self._render(*body)
            elif kind == "run":
                self._run(*body)
            elif kind == "abort":
                self._engine.abort_request([str(item_id) for item_id in self._running])
                self._running.clear()
            else:
                self._pipe.send(("stats", self._engine.collective_rpc("dwdp_stats")[0]))

    def _render(self, items: list[tuple[int, RawPrompt]]) -> None:
        """A prompt that is better sent as it was given is only checked; its result is None."""
        results: list[tuple[int, bool, Any]] = []
        for item_id, raw in items:
            try:
                rendered = self._renderer.render(raw)
            except EngineDeadError:
                raise
            except Exception as error:
                results.append((item_id, True, _sendable(error)))
            else:
                results.append((item_id, False, rendered if can_be_sent(rendered) else None))
        self._renderer.forget_what_was_not_sent()
        self._pipe.send(("results", results))

    def _run(self, items: list[tuple[int, RawPrompt | RenderedPrompt]]) -> None:
        for item_id, item in items:
            try:
                self._add(item_id, item)
            except EngineDeadError:
                raise
            except Exception as error:
                self._pipe.send(("results", [(item_id, True, _sendable(error))]))
            else:
                self._running.add(item_id)

    def _add(self, item_id: int, item: RawPrompt | RenderedPrompt) -> None:
        rendered = item if isinstance(item, RenderedPrompt) else self._renderer.render(item)
        if isinstance(rendered.params, SamplingParams):
            rendered.params.output_kind = RequestOutputKind.FINAL_ONLY
        self._engine.add_request(
            str(item_id),
            rendered.prompt,
            rendered.params,
            lora_request=rendered.lora_request,
            priority=rendered.priority,
        )

    def _step(self) -> None:
        results = []
        for output in self._engine.step():
            item_id = int(output.request_id)
            if output.finished and item_id in self._running:
                self._running.remove(item_id)
                results.append((item_id, False, output))
        if results:
            self._pipe.send(("results", results))


def _sendable(error: Exception) -> Exception:
    """The exception itself, where it survives a pipe; else one of a built-in class that it has."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    if type(copy) is type(error) and str(copy) == str(error):
        return error
    known = (ValueError, TypeError, KeyError, NotImplementedError)
    kind = next((kind for kind in known if isinstance(error, kind)), RuntimeError)
    return kind(f"{type(error).__name__}: {error}")
