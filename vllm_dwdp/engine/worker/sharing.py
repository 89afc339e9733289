# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One rank's start: load, adopt, meet and bind in the worker's load_model, and later settle.

* Before anything is loaded, the ranks check that they can read each other's memory. Before weights
  are read, they check that the model will fit.
* If a rank fails anywhere in its start, its peers end with the same sentence.
* Views are bound before vLLM profiles, compiles or sizes the KV cache; they never change again.
"""

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import torch
from vllm.logger import init_logger

from vllm_dwdp._core import HandleType
from vllm_dwdp.device import memory_kind, rank_memory
from vllm_dwdp.engine.moe.adoption import adopt
from vllm_dwdp.engine.moe.bound_layers import BoundLayers
from vllm_dwdp.engine.moe.context import MoeContext
from vllm_dwdp.engine.moe.experts_op import register_op
from vllm_dwdp.engine.moe.graph_fence import captured_tokens
from vllm_dwdp.engine.moe.loader import check_layers
from vllm_dwdp.engine.parent_watch import end_for_good
from vllm_dwdp.engine.setup import settings as job
from vllm_dwdp.engine.worker.extra_experts import ExtraExperts
from vllm_dwdp.engine.worker.meeting import rendezvous
from vllm_dwdp.engine.worker.model_fit import ModelFit, check_kernel_limits, rank_layout
from vllm_dwdp.engine.worker.peer_trial import try_peers
from vllm_dwdp.engine.worker.rank_manifest import rank_manifest
from vllm_dwdp.engine.worker.start_report import (
    expert_stats,
    kv_stats,
    log_decode,
    log_start,
    warn_of_untried_kernels,
)
from vllm_dwdp.fetch.choice import StepSizes
from vllm_dwdp.group.errors import RankFailed
from vllm_dwdp.group.meet.manifest import Manifest
from vllm_dwdp.group.meet.process_identity import ProcessIdentity
from vllm_dwdp.group.meet.progress import Phase
from vllm_dwdp.group.session import GroupSession
from vllm_dwdp.memory.handle import TYPE_NAMES
from vllm_dwdp.memory.limits import check_map_budget
from vllm_dwdp.rank.experts import RankExperts
from vllm_dwdp.rank.fetch_costs import RunStep
from vllm_dwdp.rank.fetching import Fetching
from vllm_dwdp.rank.tracing import Tracing

logger = init_logger("vllm.dwdp")


class ExpertSharing:
    """One rank's part in its group, from the start of loading on.

    budget_bytes: see `DwdpWorker.budget_bytes`.
    """

    def __init__(self, vllm_config: Any, *, budget_bytes: int) -> None:
        self._vllm_config = vllm_config
        self._budget_bytes = budget_bytes
        self._kv_cache_bytes = vllm_config.cache_config.kv_cache_memory_bytes
        settings = job.Settings.load(vllm_config)
        assert settings is not None, "the executor checks that dwdp is configured"
        config = self._config = job.user_config(vllm_config)
        self.job_rank = job.job_rank(vllm_config, settings)
        self._settings = settings
        self.rank = self.job_rank % settings.dwdp_size
        self._device_type = vllm_config.device_config.device_type
        self._is_on_host = one_host = memory_kind(self._device_type) == "host"
        self._session = GroupSession(
            rendezvous(vllm_config, settings, one_host=one_host),
            timeout_s=config.timeout_s,
            load_concurrency=config.load_concurrency,
        )
        self.context = MoeContext(
            rank=self.rank,
            dwdp_size=settings.dwdp_size,
            num_experts_per_worker=config.num_experts_per_worker,
            host_experts=config.given_host_experts,
            loads_on_host=config.host_experts != 0,
            on_step=self._session.step,
            before_loading=self._check_fit,
        )
        self._handle_type: HandleType | None = None
        self._has_room_for_slots = True
        self.stats: dict[str, Any] = {}
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """A context around loading and `share`: a failure inside ends all ranks with one sentence.

        Raises RankFailed with this sentence.
        """
        try:
            self._session.open()
            register_op()
            # After `open`, so that peers hear of it if this GPU can't share memory.
            self._memory = rank_memory(self._device_type, self.rank)
            self._driver = self._memory.driver
            self._handle_type = try_peers(
                self._config,
                self._session,
                self._memory,
                job_rank=self.job_rank,
                kv_cache_bytes=self._kv_cache_bytes,
            )
            self._memory.give_back()
            self.context.enter()
            yield
        except BaseException as error:
            sentence = self._session.abort(error)
            logger.error("%s", sentence)
            if isinstance(error, RankFailed) or not isinstance(error, Exception):
                raise
            raise RankFailed(sentence) from error

    def share(self, model: torch.nn.Module, run_step: RunStep) -> None:
        """Adopt the loaded experts, meet the group, and bind each layer to views of all experts."""
        self._session.loading_turns.end()
        check_layers(model)  # again: with dummy weights dwdp's loader has not run
        layers = self.context.layers
        layout = rank_layout(
            self.context, self._config, rank=self.rank, granularity=self._driver.granularity
        )
        model_config = self._vllm_config.model_config
        self._extra = ExtraExperts(self._config, self.context, model_config, job_rank=self.job_rank)
        layout = self._extra.add_to(layout, self._session.gather, is_on_host=self._is_on_host)
        check_kernel_limits(layout, is_on_host=self._is_on_host)
        manifest = rank_manifest(model, layers, model_config, self._driver)
        self._session.enter(Phase.ADOPTING)
        with self._timed("adopt"):
            experts = adopt(self._memory, layers, layout, self._session.step)
        with self._timed("meet"):
            self._meet(manifest, experts)
            own = ProcessIdentity.own().to_bytes()
            found = self._session.gather("members", own)
            self._members = [ProcessIdentity.from_bytes(data) for data in found]
        with self._timed("bind"):
            self._bind(experts, run_step)
        for warning in self._memory.warnings:
            logger.warning("%s", warning)
        self._session.finish()
        self._experts = experts
        self._report(experts)
        log_decode(self._vllm_config, layers, layout, bandwidths=self._fetching.bandwidths)
        if not self._is_on_host:
            warn_of_untried_kernels(layers)

    def settle(self) -> None:
        """Let steps fetch by the policy from now on.

        Raises ConfigError if vLLM has set up a layer's kernels differently since they were bound.
        """
        for layer in self.context.layers:
            layer.settle_readers()
        self._fetching.settle()
        self._extra.count(self._device_type)  # a CUDA graph that is captured now counts, too

    def note_kv_cache(self, kv_cache_config: Any) -> None:
        """Report how much KV cache this rank has; kv_cache_config: vLLM's KVCacheConfig."""
        self.stats |= kv_stats(self._vllm_config, kv_cache_config, self._experts)

    def begin_serving(self) -> None:
        """To be called when vLLM has warmed up: from now on steps are the users'."""
        self._extra.begin_serving()

    def stop(self) -> None:
        """Stop the copies; called before the process ends, which frees the memory they write to.

        Saves what was counted for the next run.
        """
        if hasattr(self, "_fetching"):  # not set if start-up failed early
            try:
                self._fetching.stop()
            finally:
                self._extra.stop()

    def live_stats(self) -> dict[str, Any]:
        """The policy that steps follow, and all counters since start-up."""
        return {
            "fetch": self._fetching.policy.table(),
            "break_even_tokens": self._fetching.break_even_tokens,
            "members_alive": self._num_alive(),
            **self._fetching.counts(),
        }

    @property
    def tracing(self) -> Tracing:
        """The recordings of this rank. An engine answers calls only once it is settled."""
        assert self._fetching.tracing is not None, "a rank is settled before it is asked to record"
        return self._fetching.tracing

    def trace(self) -> dict[str, Any]:
        """End and return the recording, with what a reader must know of this rank."""
        return {
            "rank": self.job_rank,
            "job_ranks": list(self._session.job_ranks),
            "dwdp_rank": self.rank,
            "host": socket.gethostname(),
            "memory": self._driver.kind,
            "model": self._vllm_config.model_config.model,
            "layers": [layer.layer_name for layer in self.context.layers],
            **self.tracing.take().to_dict(),
        }

    def _num_alive(self) -> int:
        """Members of the group whose process lives; one on another host counts as alive."""
        own = ProcessIdentity.own()
        return sum(not member.has_ended(seen_by=own) for member in self._members)

    def _check_fit(self, model: torch.nn.Module) -> None:
        """Check that the model fits, and wait for this rank's turn to load.

        Called when the model is built and before weights are read.
        """
        fit = ModelFit(
            self._config,
            self._memory,
            self._session.gather,
            budget_bytes=self._budget_bytes,
            kv_cache_bytes=self._kv_cache_bytes,
        )
        self._has_room_for_slots = fit.check(
            model,
            self.context,
            rank=self.rank,
            job_rank=self.job_rank,
            handle_type=self._handle_type,
        )
        self._session.loading_turns.begin()

    def _meet(self, manifest: Manifest, experts: RankExperts) -> None:
        self._session.meet(manifest)
        self._session.hand_over(experts.handles, num_parcels=experts.layout.num_parcels)

    def _bind(self, experts: RankExperts, run_step: RunStep) -> None:
        bound = BoundLayers(self.context, experts.layout, self._memory)
        experts.connect(self._session.take_handles)
        bound.bind(experts.direct)
        self._fetching = self._make_fetching(bound, experts)
        self._fetching.decide(run_step)
        if slots := self._fetching.make_slots():
            if self._is_on_host:
                check_map_budget(slots.num_maps)
            for layer_idx, layer in enumerate(self.context.layers):
                self._session.step(layer.layer_name)
                bound.bind_slot(layer_idx, experts.build_on_slot(layer_idx))
        self._fetching.start()

    def _make_fetching(self, layers: BoundLayers, experts: RankExperts) -> Fetching:
        return Fetching(
            self._config,
            layers,
            experts,
            memory=self._memory,
            sizes=StepSizes(
                max_tokens=self._vllm_config.scheduler_config.max_num_batched_tokens,
                captured_tokens=captured_tokens(self._vllm_config),
            ),
            gather=self._session.gather,
            job_ranks=self._session.job_ranks,
            on_step=self._session.step,
            has_room=self._has_room_for_slots,
            end_rank=end_for_good,
        )

    def _report(self, experts: RankExperts) -> None:
        self.stats = {
            "rank": self.job_rank,
            "job_size": self._settings.job_size,
            "group": self.job_rank // self._settings.dwdp_size,
            "dwdp_size": self._settings.dwdp_size,
            "memory": self._driver.kind,
            "handles": TYPE_NAMES[self._handle_type] if self._handle_type else "none",
            "numa_node": self._memory.numa_node,
            **expert_stats(self.context, experts),
            "fetch_config": self._config.fetch,
            "slot_bytes": experts.slots.num_bytes if experts.slots else 0,
            "startup_seconds": self._seconds,
        }
        log_start(self.stats)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = round(time.perf_counter() - start, 3)
