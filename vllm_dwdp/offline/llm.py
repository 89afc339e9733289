# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Offline inference over all ranks: vllm.LLM with `data_parallel_size=N`.

* Each rank is a process that builds a vllm.LLM, with its place in vLLM's `VLLM_DP_*` variables.
* A prompt goes to whichever rank is free.
* The ranks render and check all prompts of a call before the first one runs.
* When a rank dies, this is logged, and its prompts in flight are tried once more on other ranks.
* Calls of several threads take turns. All ranks end with the LLM object, or with the program.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import vllm
from tqdm import tqdm

from vllm_dwdp.offline.errors import NoRankLeft, PromptsFailed, RankDied
from vllm_dwdp.offline.options import check_at_least_one, rank_options
from vllm_dwdp.offline.pickled_options import PickledOptions
from vllm_dwdp.offline.prompt import RawPrompt, bound_options, raw_prompts
from vllm_dwdp.offline.prompt_queue import PromptQueue
from vllm_dwdp.offline.rank_pool import RankPool

if TYPE_CHECKING:
    from vllm import PromptType, RequestOutput, SamplingParams
    from vllm.entrypoints.chat_utils import ChatCompletionMessageParam as Message

__all__ = ["LLM", "PromptsFailed", "RankDied"]

DEFAULT_MAX_IN_FLIGHT = 64
RENDER_BATCH = 32
"""Prompts in one message to render: few enough that all ranks finish at about the same time."""


class LLM:
    """The constructor, `generate` and `chat` of vllm.LLM, over `data_parallel_size` ranks.

    max_in_flight: prompts that one rank holds at a time; the rest wait for whichever rank is free.
    Raises RankDied when a rank can't start, and TypeError or ValueError for options that can't
    work.
    """

    def __init__(
        self,
        model: str,
        *,
        data_parallel_size: int = 1,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        **options: Any,
    ) -> None:
        check_at_least_one(data_parallel_size=data_parallel_size, max_in_flight=max_in_flight)
        pickled = PickledOptions.of({"model": model, **rank_options(options)})
        self._max_in_flight = max_in_flight
        self._next_id = 0
        self._turn = threading.Lock()
        self._pool = RankPool(data_parallel_size, pickled)
        self._finalizer = weakref.finalize(self, self._pool.end)
        # At exit multiprocessing waits for this process's children, the ranks. It runs this first,
        # also in a process that multiprocessing itself started.
        self._at_exit = Finalize(None, self._finalizer, exitpriority=0)
        try:
            self._pool.start()
        except BaseException:
            self.shutdown()
            raise

    def generate(
        self,
        prompts: "PromptType | Iterable[PromptType]",
        sampling_params: "SamplingParams | Sequence[SamplingParams] | None" = None,
        *,
        use_tqdm: bool | Callable[..., tqdm] = True,
        **options: Any,
    ) -> "list[RequestOutput]":
        """As vllm.LLM.generate: one RequestOutput per prompt, in the order of the prompts.

        Raises what vllm.LLM.generate raises for a prompt that it refuses, before any prompt runs;
        PromptsFailed, with the outputs of all others, when prompts end their ranks; RankDied when
        no rank is left.
        """
        arguments = bound_options(
            vllm.LLM.generate, prompts, sampling_params, use_tqdm=use_tqdm, **options
        )
        return self._call("generate", arguments.pop("prompts"), arguments)

    def chat(
        self,
        messages: "Iterable[Message] | Iterable[list[Message]]",
        sampling_params: "SamplingParams | Sequence[SamplingParams] | None" = None,
        use_tqdm: bool | Callable[..., tqdm] = True,
        *more: Any,
        **options: Any,
    ) -> "list[RequestOutput]":
        """As vllm.LLM.chat: one conversation or a sequence of them. Raises what `generate` does."""
        arguments = bound_options(
            vllm.LLM.chat, messages, sampling_params, use_tqdm, *more, **options
        )
        return self._call("chat", arguments.pop("messages"), arguments)

    def dwdp_stats(self) -> list[dict[str, Any]]:
        """What each living rank owns, maps and has run; sizes in bytes.

        May be called while another thread's call runs.
        """
        with contextlib.suppress(RankDied):
            self._pool.check_usable()
        return self._pool.stats()

    def shutdown(self) -> None:
        """End all ranks. This also happens when the object is deleted or the program ends.

        A call that runs in another thread raises RuntimeError, as do later calls.
        """
        self._finalizer()
        self._at_exit.cancel()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def _call(self, kind: str, prompts: Any, arguments: dict[str, Any]) -> list[Any]:
        self._pool.check_usable()  # before the lock: a fork may have inherited it locked
        params = arguments.pop("sampling_params")
        use_tqdm = arguments.pop("use_tqdm")
        raw = raw_prompts(kind, prompts, params, arguments)
        with self._turn, self._abandoning():
            self._pool.check_usable()
            rendered = self._render(raw)
            with _bar(len(raw), use_tqdm) as report:
                return self._run(raw, rendered, report)

    def _render(self, raw: list[RawPrompt]) -> PromptQueue:
        """Have the ranks render all prompts. Raises vLLM's exception for the first one refused."""
        queue = self._queue(raw, limit=2 * RENDER_BATCH, batch=RENDER_BATCH, stops_at_error=True)
        self._pool.run("render", queue, lambda num_done: None)
        refused = {i: e for i, e in queue.errors.items() if not isinstance(e, RankDied)}
        if refused:
            first = min(refused)
            refused[first].add_note(f"This is prompt {first} of {len(raw)}; none was run.")
            raise refused[first]
        return queue

    def _run(
        self, raw: list[RawPrompt], rendered: PromptQueue, report: Callable[[int], Any]
    ) -> list[Any]:
        """Run the rendered prompts; returns their outputs, in the order of the prompts.

        Raises PromptsFailed, with the outputs of the others, if a prompt has no output.
        """
        indices = [i for i in range(len(raw)) if i not in rendered.errors]
        items = [rendered.results[i] or raw[i] for i in indices]
        queue = self._queue(items, limit=self._max_in_flight)
        outputs: list[Any] = [None] * len(raw)
        no_rank_left = None
        try:
            self._pool.run("run", queue, report)
        except RankDied as error:
            no_rank_left = error
        for index, output in zip(indices, queue.results, strict=True):
            outputs[index] = output
        if no_rank_left is not None:
            raise NoRankLeft(f"{no_rank_left} {_num_failed(outputs)}", outputs) from no_rank_left
        if errors := {**rendered.errors, **{indices[i]: e for i, e in queue.errors.items()}}:
            first = min(errors)
            text = f"{_num_failed(outputs)} Prompt {first}: {errors[first]}."
            raise PromptsFailed(text, outputs) from errors[first]
        return outputs

    def _queue(self, items: list[Any], **options: Any) -> PromptQueue:
        """A queue with new ids, so that late answers to an aborted call match no later item."""
        queue = PromptQueue(self._next_id, items, **options)
        self._next_id += len(items)
        return queue

    @contextlib.contextmanager
    def _abandoning(self) -> Iterator[None]:
        """Have the ranks drop a call's work if the call raises, as on Ctrl-C."""
        try:
            yield
        except BaseException:
            self._pool.abandon()
            raise


def _num_failed(outputs: list[Any]) -> str:
    num_failed = sum(output is None for output in outputs)
    return (
        f"{num_failed} of {len(outputs)} prompts failed; the outputs of the others are in this "
        "exception's 'outputs'."
    )


@contextlib.contextmanager
def _bar(num_prompts: int, use_tqdm: bool | Callable[..., tqdm]) -> Iterator[Callable[[int], Any]]:
    """A progress bar like vLLM's; yields the function that advances it by a number of prompts."""
    if not use_tqdm:
        yield lambda num_done: None
        return
    make_bar = use_tqdm if callable(use_tqdm) else tqdm
    bar = make_bar(total=num_prompts, desc="Processed prompts", dynamic_ncols=True)
    with contextlib.closing(bar):
        yield bar.update
