# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""An offline rank without a model: loop, inbox, pipe and handle are real, the LLM is not."""

import contextlib
import multiprocessing
import os
import queue
import time
from typing import Any, NamedTuple

from vllm.v1.engine import EngineCoreRequest

from vllm_dwdp.offline.prompt import RawPrompt
from vllm_dwdp.offline.rank_child import RankChild
from vllm_dwdp.offline.rank_handle import RankHandle
from vllm_dwdp.offline.rank_inbox import RankInbox
from vllm_dwdp.offline.rank_loop import RankLoop

ANSWER_S = 60


class Output(NamedTuple):
    request_id: str
    finished: bool
    prompt: Any


class AnsweringEngine:
    """An engine that finishes each request in one step. The output's prompt is `answer(prompt)`."""

    def __init__(self, answer):
        self.input_processor = self
        self._answer = answer
        self._waiting = []

    def get_supported_tasks(self):
        return ("generate",)

    def process_inputs(self, request_id, prompt, params, *, priority, **_):
        """The request that vLLM makes of token ids."""
        return EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=prompt["prompt_token_ids"],
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            priority=priority,
        )

    def add_request(self, request_id, prompt, *_, **__):
        self._waiting.append((request_id, prompt))

    def step(self):
        waiting, self._waiting = self._waiting, []
        return [Output(request_id, True, self._answer(prompt)) for request_id, prompt in waiting]


class AnsweringLLM:
    """An LLM over AnsweringEngine. The token ids of a text are the code points of its letters."""

    def __init__(self, answer):
        self.llm_engine = AnsweringEngine(answer)

    def enqueue(self, prompts, params, *, use_tqdm, priority=(0,)):
        (prompt,) = prompts
        ids = [ord(c) for c in prompt] if isinstance(prompt, str) else prompt["prompt_token_ids"]
        engine_input = {"type": "token", "prompt_token_ids": ids, "prompt": prompt}
        self.llm_engine.add_request("0", engine_input, params[0], priority=priority[0])


def prompt_of(prompt, params=None, **options):
    return RawPrompt("generate", prompt, (params,), options)


class StandInRank:
    """The rank in a forked process, which doesn't know what the test defines after the fork.

    make_rank: makes of the child what the handle gets.
    """

    def __init__(self, answer, make_rank=lambda child: child):
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, answer), daemon=True)
        process.start()
        theirs.close()
        self._news = queue.SimpleQueue()
        self.handle = RankHandle(0, make_rank(RankChild(process, ours)), self._news)

    def answers(self, kind, *items):
        """Send the items; returns (is it an error, result or error) by the number of the item."""
        self.handle.send_items(kind, list(enumerate(items)))
        found = {}
        while len(found) < len(items):
            _, (kind_of_news, body) = self._news.get(timeout=ANSWER_S)
            assert kind_of_news == "answers", body
            found |= {answer.item_id: (answer.is_error, answer.content) for answer in body}
        return found

    def end(self):
        self.handle.send(None)
        self.handle.join(time.monotonic() + ANSWER_S)  # the handle's reader thread joins it as well
        assert self.handle.exit_code == 0


def _serve(pipe, answer):
    RankLoop(AnsweringLLM(answer), pipe, RankInbox(pipe, on_end=lambda: os._exit(0))).run()


def text_of(prompt):
    return prompt["prompt"]


@contextlib.contextmanager
def standing_in(answer=text_of):
    rank = StandInRank(answer)
    try:
        yield rank
    finally:
        rank.end()
