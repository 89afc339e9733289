# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Methods of vllm.LLM that concern an engine, not prompts: every rank runs them."""

import functools
from collections.abc import Callable
from typing import Any

from vllm_dwdp.offline.rank_pool import RankPool


class EveryRank:
    """A base of vllm_dwdp.LLM. May be called while another thread's call runs.

    Raises what vllm.LLM's methods raise, and RankDied if a rank ends.
    """

    _pool: RankPool
    _num_ranks: int

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """As vllm.LLM.collective_rpc: the results of the ranks' workers, by rank."""
        found = self._pool.call("collective_rpc", method, timeout, args, kwargs)
        return [result for (result,) in found]

    def apply_model(self, func: Callable[..., Any]) -> list[Any]:
        """As vllm.LLM.apply_model: the results by rank. Expert weights can't be written to."""
        return [result for (result,) in self._pool.call("apply_model", func)]

    def start_profile(self, profile_prefix: str | None = None, **options: Any) -> None:
        """As vllm.LLM.start_profile, on every rank."""
        self._pool.call("start_profile", profile_prefix, **options)

    def stop_profile(self) -> None:
        """As vllm.LLM.stop_profile, on every rank."""
        self._pool.call("stop_profile")

    def dwdp_trace_start(self, num_steps: int) -> None:
        """Have every rank record so many steps, from its next one on. See docs/tracing.md.

        A recording that wasn't taken is dropped. Raises Exception, as vLLM does for all errors of
        a worker, for a number that a rank can't record.
        """
        self._pool.call("collective_rpc", "dwdp_trace_start", None, (num_steps,))

    def dwdp_trace(self) -> list[dict[str, Any]]:
        """End the recordings, even if fewer steps have run, and return them by rank.

        `vllm_dwdp.trace.trace_file.Trace.of` makes a trace of them. Raises Exception, as vLLM does
        for every error of a worker, if nothing was recorded.
        """
        return self.collective_rpc("dwdp_trace")

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """As vllm.LLM.reset_prefix_cache, on every rank; whether all have done it."""
        return all(self._pool.call("reset_prefix_cache", reset_running_requests, reset_connector))

    def reset_mm_cache(self) -> None:
        """As vllm.LLM.reset_mm_cache, on every rank."""
        self._pool.call("reset_mm_cache")

    def get_metrics(self) -> list[list[Any]]:
        """As vllm.LLM.get_metrics, by rank."""
        return self._pool.call("get_metrics")

    def get_tokenizer(self) -> Any:
        """As vllm.LLM.get_tokenizer: a copy of a rank's tokenizer."""
        return self._tokenizer

    def get_default_sampling_params(self) -> Any:
        """As vllm.LLM.get_default_sampling_params."""
        return self._pool.call("get_default_sampling_params")[0]

    def get_world_size(self, include_dp: bool = True) -> int:
        """As vllm.LLM.get_world_size: the number of ranks, or 1 without data parallelism."""
        return self._num_ranks if include_dp else 1

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return self._pool.call("get_tokenizer")[0]
