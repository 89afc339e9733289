# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The main loop of a rank: it renders or runs the prompts that it is sent, and answers calls."""

from multiprocessing.connection import Connection
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

from vllm_dwdp.engine.request_path import EngineDeadError
from vllm_dwdp.offline.parcels import Answer, refusal, result, unpacked
from vllm_dwdp.offline.prompt import RenderedPrompt
from vllm_dwdp.offline.prompt_renderer import PromptRenderer, can_be_sent
from vllm_dwdp.offline.rank_inbox import RankInbox

ITEM = "this prompt or its parameters"


class RankLoop:
    """Adds prompts to the engine between steps, so that its batch refills as requests finish."""

    def __init__(self, llm: Any, pipe: Connection, inbox: RankInbox) -> None:
        self._llm = llm
        self._engine = llm.llm_engine
        self._renderer = PromptRenderer(llm)
        self._pipe = pipe
        self._inbox = inbox
        self._running: set[int] = set()

    def run(self) -> None:
        """Loop until the process is ended."""
        while True:
            self._take_messages()
            self._step()

    def _take_messages(self) -> None:
        """Handle all messages that have come; while no prompt runs, wait for more."""
        while not self._running or not self._inbox.is_empty():
            kind, *body = self._inbox.take()
            if kind == "render":
                self._render(*body)
            elif kind == "run":
                self._run(*body)
            elif kind == "abort":
                self._engine.abort_request([str(item_id) for item_id in self._running])
                self._running.clear()
            elif kind == "batch":
                self._pipe.send(("answers", [self._done(*item) for item in body[0]]))
            else:
                self._pipe.send(("called", self._called(*body)))

    def _done(self, item_id: int, parcel: bytes) -> Answer:
        """Run a batch from its beginning to its end: vLLM's method steps the engine itself."""
        try:
            batch = unpacked(parcel, what=ITEM)
            with self._renderer.real_engine():
                return result(item_id, batch.run_on(self._llm))
        except EngineDeadError:
            raise
        except Exception as error:
            return refusal(item_id, error)

    def _called(self, parcel: bytes) -> Answer:
        """Call a method of the vllm.LLM for the caller, between steps."""
        try:
            name, args, kwargs = unpacked(parcel, what="this call")
            return result(0, getattr(self._llm, name)(*args, **kwargs))
        except EngineDeadError:
            raise
        except Exception as error:
            return refusal(0, error)

    def _render(self, items: list[tuple[int, bytes]]) -> None:
        answers = [self._rendered(item_id, parcel) for item_id, parcel in items]
        self._renderer.forget_what_was_not_sent()
        self._pipe.send(("answers", answers))

    def _rendered(self, item_id: int, parcel: bytes) -> Answer:
        """The rendered prompt; None if it is valid, but better sent as the caller gave it."""
        try:
            rendered = self._renderer.render(unpacked(parcel, what=ITEM))
        except EngineDeadError:
            raise
        except Exception as error:
            return refusal(item_id, error)
        return result(item_id, rendered if can_be_sent(rendered) else None)

    def _run(self, items: list[tuple[int, bytes]]) -> None:
        for item_id, parcel in items:
            try:
                self._add(item_id, unpacked(parcel, what=ITEM))
            except EngineDeadError:
                raise
            except Exception as error:
                self._pipe.send(("answers", [refusal(item_id, error)]))
            else:
                self._running.add(item_id)

    def _add(self, item_id: int, item: Any) -> None:
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
        answers = []
        for output in self._engine.step():
            item_id = int(output.request_id)
            if output.finished and item_id in self._running:
                self._running.remove(item_id)
                answers.append(result(item_id, output))
        if answers:
            self._pipe.send(("answers", answers))
