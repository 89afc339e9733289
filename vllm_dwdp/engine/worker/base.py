# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank's worker: vLLM's worker, which also shares its experts when it loads the model."""

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

from vllm.v1.worker.worker_base import WorkerBase

from vllm_dwdp.engine.moe.layer_classes import share_layers
from vllm_dwdp.engine.moe.loader import use_dwdp_loader
from vllm_dwdp.engine.moe.read_only import refuse_call, refuse_save
from vllm_dwdp.engine.parent_watch import end_with_parent
from vllm_dwdp.engine.setup import last_words, settings
from vllm_dwdp.engine.worker.sharing import ExpertSharing

WRITING_RPCS = (
    "reload_weights",
    "reset_weights",
    "sleep",
    "wake_up",
    "discard",
    "checkpoint_prepare",
    "checkpoint_restore",
    "init_weight_transfer_engine",
    "start_weight_update",
    "start_draft_weight_update",
    "update_weights",
    "finish_weight_update",
    "elastic_ep_execute",
)
SAVING_RPCS = ("save_sharded_state", "save_tensorized_model")
STARTING = (
    "init_device",
    "load_model",
    "determine_available_memory",
    "initialize_from_config",
    "compile_or_warm_up_model",
)
"""The methods of a worker that its engine calls as it starts, in this order."""


class DwdpWorker(WorkerBase):
    """A mixin for vLLM's worker of a platform. Lives in the worker process of one rank."""

    is_up = False
    """Whether the engine has started. From then on an error concerns one call, not the start."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in STARTING:
            setattr(cls, name, _leaving_last_words(getattr(cls, name)))

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        end_with_parent()
        self.vllm_config, self.parallel_config = vllm_config, vllm_config.parallel_config
        try:
            super().__init__(vllm_config, *args, **kwargs)
        except Exception as error:
            self.leave_last_words(error)
            raise

    def leave_last_words(self, error: Exception) -> None:
        """Have the front-end say why this rank can't start."""
        resolved = settings.Settings.load(self.vllm_config)
        if resolved is not None and not self.is_up:
            rank = settings.job_rank(self.vllm_config, resolved)
            last_words.leave(self.parallel_config, error, job_rank=rank)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load this rank's experts, then bind every MoE layer to views of all experts.

        Raises RankFailed if any rank fails, and ReadOnlyWeight if called again.
        """
        if hasattr(self, "_sharing"):
            refuse_call("load_model")
        share_layers()
        self._sharing = ExpertSharing(self.vllm_config, budget_bytes=self.budget_bytes)
        use_dwdp_loader(self.vllm_config.load_config, self._sharing.context)
        with self._sharing.starting():
            super().load_model(*args, **kwargs)
            self._sharing.share(self.get_model(), self.run_largest_step)

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """Make the KV cache, and report how many tokens it holds."""
        super().initialize_from_config(kv_cache_config)
        self._sharing.note_kv_cache(kv_cache_config)

    def compile_or_warm_up_model(self) -> Any:
        """Let steps fetch by the policy, then warm up. An engine calls this once, last of all."""
        self._sharing.settle()
        result = super().compile_or_warm_up_model()
        self._sharing.begin_serving()
        return result

    @property
    @abstractmethod
    def budget_bytes(self) -> int:
        """Bytes that vLLM may use in all; not a limit if the size of the KV cache is given."""

    @abstractmethod
    def run_largest_step(self) -> None:
        """Run the model on as many made-up tokens as a step can have, without a KV cache.

        The tokens are random, because equal ones would all choose the same experts.
        """

    def shutdown(self) -> None:
        """Stop the copies, then shut down vLLM's worker."""
        try:
            if sharing := getattr(self, "_sharing", None):
                sharing.stop()
        finally:
            super().shutdown()

    def dwdp_stats(self) -> dict[str, Any]:
        """Figures of what this rank owns, maps and has fetched; sizes in bytes."""
        return {**self._sharing.stats, **self._sharing.live_stats()}

    def dwdp_trace_start(self, num_steps: int | str) -> None:
        """Record so many steps from the next one on; a recording that wasn't taken is dropped.

        num_steps: may be text, as in vLLM's `/collective_rpc`. Raises ValueError for a number that
        can't be recorded.
        """
        self._sharing.tracing.start(int(num_steps))

    def dwdp_trace_steps(self) -> list[int]:
        """[the steps recorded so far]; a list, because `/collective_rpc` turns numbers to text."""
        return [self._sharing.tracing.num_steps]

    def dwdp_trace(self) -> dict[str, Any]:
        """End the recording and return it: StepRecording.to_dict, with what names the rank.

        Raises RuntimeError if nothing was recorded.
        """
        return self._sharing.trace()


def _leaving_last_words(start: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method so that the front-end prints its error as the last line of the command."""

    @functools.wraps(start)
    def call(self: DwdpWorker, *args: Any, **kwargs: Any) -> Any:
        try:
            result = start(self, *args, **kwargs)
        except Exception as error:
            self.leave_last_words(error)
            raise
        self.is_up |= start.__name__ == STARTING[-1]
        return result

    return call


def _refusal(name: str, refuse: Callable[[str], NoReturn]) -> Any:
    def call(self: DwdpWorker, *args: Any, **kwargs: Any) -> NoReturn:
        refuse(name)

    call.__name__ = name
    return call


for _names, _refuse in ((WRITING_RPCS, refuse_call), (SAVING_RPCS, refuse_save)):
    for _name in _names:
        setattr(DwdpWorker, _name, _refusal(_name, _refuse))
