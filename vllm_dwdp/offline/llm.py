# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Offline inference over all ranks: vllm.LLM with `data_parallel_size=N`.

* Each rank is a process that builds a vllm.LLM, with its place in vLLM's `VLLM_DP_*` variables. It
  runs here, or on a node of a Ray cluster.
* A prompt goes to whichever rank is free.
* The ranks render and check all prompts of a call before the first one runs.
* When a rank dies, this is logged, and its prompts in flight are tried once more on other ranks.
* Calls of several threads take turns. All ranks end with the LLM object, or with the program.
"""

import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import vllm
from tqdm import tqdm

from vllm_dwdp.offline.batch import batches
from vllm_dwdp.offline.batch_methods import BatchMethods
from vllm_dwdp.offline.errors import PromptsFailed, RankDied
from vllm_dwdp.offline.every_rank import EveryRank
from vllm_dwdp.offline.local_ranks import LocalRanks
from vllm_dwdp.offline.options import (
    check_at_least_one,
    group_size_by_ray,
    is_by_ray,
    rank_options,
)
from vllm_dwdp.offline.pickled_options import PickledOptions
from vllm_dwdp.offline.prompt import bound_options, raw_prompts
from vllm_dwdp.offline.prompt_runner import PromptRunner
from vllm_dwdp.offline.rank_pool import RankPool, Ranks
from vllm_dwdp.offline.ray_ranks import RayRanks
from vllm_dwdp.offline.refused_methods import RefusedMethods

if TYPE_CHECKING:
    from vllm import PromptType, RequestOutput, SamplingParams
    from vllm.entrypoints.chat_utils import ChatCompletionMessageParam as Message

__all__ = ["LLM", "PromptsFailed", "RankDied"]

DEFAULT_MAX_IN_FLIGHT = 64


class LLM(BatchMethods, EveryRank, RefusedMethods):
    """vllm.LLM over `data_parallel_size` ranks; docs/llm.md lists its methods.

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
        self._num_ranks = data_parallel_size
        self._max_in_flight = max_in_flight
        self._enqueued: list[tuple[str, Any]] = []
        self._num_enqueued = 0
        self._turn = threading.Lock()
        self._pool = RankPool(_ranks(data_parallel_size, pickled, options))
        self._runner = PromptRunner(self._pool, max_in_flight)
        self._finalizer = weakref.finalize(self, self._pool.end)
        # At exit multiprocessing waits for this process's children, the ranks. It runs this first,
        # also in a process that multiprocessing itself started.
        self._at_exit = Finalize(None, self._finalizer, exitpriority=0)
        try:
            self._pool.start()
        except BaseException:
            self.shutdown()
            raise
        # Runs before Ray disconnects: Python calls last what was registered first, and Ray has
        # registered when it was imported.
        atexit.register(self._finalizer)

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

    @classmethod
    def from_engine_args(cls, engine_args: Any) -> "LLM":
        """As vllm.LLM.from_engine_args: an LLM with all options of an EngineArgs."""
        return cls(**vars(engine_args))

    def enqueue(
        self,
        prompts: "PromptType | Iterable[PromptType]",
        sampling_params: "SamplingParams | Sequence[SamplingParams] | None" = None,
        *more: Any,
        **options: Any,
    ) -> list[str]:
        """As vllm.LLM.enqueue: prompts for `wait_for_completion`; returns their request ids.

        The ranks render and check the prompts. Raises what `generate` raises before prompts run.
        """
        arguments = bound_options(vllm.LLM.enqueue, prompts, sampling_params, *more, **options)
        return self._enqueue("generate", arguments.pop("prompts"), arguments)

    def enqueue_chat(
        self,
        messages: "Iterable[Message] | Iterable[list[Message]]",
        sampling_params: "SamplingParams | Sequence[SamplingParams] | None" = None,
        *more: Any,
        **options: Any,
    ) -> list[str]:
        """As vllm.LLM.enqueue_chat, see `enqueue`."""
        arguments = bound_options(
            vllm.LLM.enqueue_chat, messages, sampling_params, *more, **options
        )
        return self._enqueue("chat", arguments.pop("messages"), arguments)

    def wait_for_completion(
        self, output_type: Any = None, *, use_tqdm: bool | Callable[..., tqdm] = True
    ) -> "list[RequestOutput]":
        """As vllm.LLM.wait_for_completion: run what was enqueued; outputs in that order.

        Raises what `generate` raises, and TypeError for an output of another type.
        """
        with self._taking_turn():
            enqueued, self._enqueued = self._enqueued, []
            with _bar(len(enqueued), use_tqdm) as report:
                outputs = self._runner.run([item for _, item in enqueued], report)
        for (request_id, _), output in zip(enqueued, outputs, strict=True):
            if output_type is not None and not isinstance(output, output_type):
                raise TypeError(f"expected outputs of {output_type}, got {type(output)}.")
            output.request_id = request_id
        return outputs

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
        atexit.unregister(self._finalizer)

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def _call(self, kind: str, prompts: Any, arguments: dict[str, Any]) -> list[Any]:
        params = arguments.pop("sampling_params")
        use_tqdm = arguments.pop("use_tqdm")
        raw = raw_prompts(kind, prompts, params, arguments)
        with self._taking_turn():
            items = self._runner.render(raw)
            with _bar(len(raw), use_tqdm) as report:
                return self._runner.run(items, report)

    def _enqueue(self, kind: str, prompts: Any, arguments: dict[str, Any]) -> list[str]:
        params = arguments.pop("sampling_params")
        arguments.pop("use_tqdm", None)
        raw = raw_prompts(kind, prompts, params, arguments)
        with self._taking_turn():
            items = self._runner.render(raw)
            ids = [f"enqueued-{self._num_enqueued + i}" for i in range(len(raw))]
            self._num_enqueued += len(raw)
            self._enqueued += zip(ids, items, strict=True)
        return ids

    def _run_batches(self, method: str, arguments: dict[str, Any]) -> list[Any]:
        use_tqdm = arguments.pop("use_tqdm", True)
        cut = batches(method, arguments, num_ranks=self._num_ranks, max_prompts=self._max_in_flight)
        num_prompts = sum(batch.num_prompts for batch in cut)
        with self._taking_turn(), _bar(num_prompts, use_tqdm) as report:
            return self._runner.run_batches(cut, report)

    @contextlib.contextmanager
    def _taking_turn(self) -> Iterator[None]:
        """Within this context no other call uses the ranks.

        They drop the call's work if the context raises, as on Ctrl-C. Raises what
        RankPool.check_usable raises.
        """
        self._pool.check_usable()  # before the lock: a fork may have inherited it locked
        with self._turn:
            try:
                self._pool.check_usable()
                yield
            except BaseException:
                self._pool.abandon()
                raise


def _ranks(job_size: int, pickled: PickledOptions, options: dict[str, Any]) -> Ranks:
    if is_by_ray(options):
        return RayRanks(job_size, group_size_by_ray(job_size, options), pickled)
    return LocalRanks(job_size, pickled)


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
