# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The life of one rank's experts: load, adopt, meet, bind, all in the worker's load_model; settle.

* What can be known before loading is: whether peers can read each other's memory, and whether the
  model will fit.
* Peers learn of a failure wherever it happens, and end with the same sentence.
* Views are bound before vLLM profiles, compiles or sizes the KV cache; they never change again.
"""

import contextlib
import functools
import importlib.metadata
import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from vllm.logger import init_logger

from vllm_dwdp._core import HandleType
from vllm_dwdp.config import ConfigError, usable_slots
from vllm_dwdp.device import memory_kind, rank_memory
from vllm_dwdp.engine.moe.adoption import adopt, layer_layout
from vllm_dwdp.engine.moe.bound_layers import BoundLayers
from vllm_dwdp.engine.moe.experts_op import register_op
from vllm_dwdp.engine.moe.fingerprint import model_fingerprint
from vllm_dwdp.engine.moe.graph_fence import captured_tokens
from vllm_dwdp.engine.moe.input_scales import take_largest
from vllm_dwdp.engine.moe.layer_registry import LayerRegistry, collecting
from vllm_dwdp.engine.moe.loader import check_layers
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts
from vllm_dwdp.engine.parent_watch import end_for_good
from vllm_dwdp.engine.setup import settings as job
from vllm_dwdp.engine.setup.drafts import check_no_drafts
from vllm_dwdp.engine.worker.host_share import (
    check_host_memory,
    check_told_alike,
    choose_host_experts,
)
from vllm_dwdp.engine.worker.meeting import rendezvous
from vllm_dwdp.engine.worker.memory_check import MemoryCheck, VllmLimits
from vllm_dwdp.engine.worker.shared_gpus import GpuUse, check_shared_gpus
from vllm_dwdp.engine.worker.start_report import expert_stats, log_decode, log_start
from vllm_dwdp.fetch.choice import StepSizes
from vllm_dwdp.group.errors import RankFailed
from vllm_dwdp.group.handover.peer_probe import PeerProbe
from vllm_dwdp.group.meet.manifest import Manifest, TensorSchema
from vllm_dwdp.group.session import GroupSession
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.memory.handle import TYPE_NAMES
from vllm_dwdp.memory.limits import check_map_budget, ensure_descriptors, num_descriptors_needed
from vllm_dwdp.rank.experts import RankExperts
from vllm_dwdp.rank.fetch_costs import RunStep
from vllm_dwdp.rank.fetching import Fetching

logger = init_logger("vllm.dwdp")


class ExpertSharing:
    """One rank's part in its group, from the start of loading on.

    budget_bytes: the memory that vLLM may use in all, unless the size of the KV cache is given.
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
        )
        self.registry = LayerRegistry(
            rank=self.rank,
            dwdp_size=settings.dwdp_size,
            num_experts_per_worker=config.num_experts_per_worker,
            host_experts=config.given_host_experts,
            loads_on_host=config.host_experts != 0,
            on_step=self._session.step,
            before_loading=self._check_memory,
        )
        self._handle_type: HandleType | None = None
        self._has_room_for_slots = True
        self.stats: dict[str, Any] = {}
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Around load and share: any failure inside ends the whole group, with one sentence."""
        try:
            self._session.open()
            register_op()
            # Not earlier: of a GPU that can't share memory the peers should hear.
            self._memory = rank_memory(self._device_type, self.rank)
            self._driver = self._memory.driver
            self._try_peers()
            self._memory.give_back()
            with collecting(self.registry):
                yield
        except BaseException as error:
            sentence = self._session.abort(error)
            logger.error("%s", sentence)
            if isinstance(error, RankFailed) or not isinstance(error, Exception):
                raise
            raise RankFailed(sentence) from error

    def share(self, model: torch.nn.Module, run_step: RunStep) -> None:
        """Adopt the loaded experts, meet the group and bind every layer to views of all."""
        check_layers(model)  # again: dummy weights come without a loader that would
        layers = self.registry.layers
        check_no_drafts(model, layers)
        layout = self._layout()
        self._check_limits(layout)
        manifest = self._manifest(model, layers)
        self._session.enter("adopting its experts")
        with self._timed("adopt"):
            experts = adopt(self._memory, layers, layout, self._session.step)
        with self._timed("meet"):
            self._meet(manifest, experts)
            take_largest(layers, functools.partial(self._session.gather, "input scales"))
        with self._timed("bind"):
            self._bind(layers, experts, run_step)
        for warning in self._memory.warnings:
            logger.warning("%s", warning)
        self._session.finish()
        self._report(layers, experts)
        log_decode(self._vllm_config, layers, layout, bandwidths=self._fetching.bandwidths)

    def settle(self) -> None:
        """Let steps fetch, once nothing more of the start-up runs on the model."""
        for layer in self.registry.layers:
            layer.settle_readers()
        self._fetching.settle()

    def stop(self) -> None:
        """Before the process ends: memory must not go while it is copied to."""
        if hasattr(self, "_fetching"):  # start-up had come so far
            self._fetching.stop()

    def live_stats(self) -> dict[str, Any]:
        """What has been counted since start-up, with the policy that steps follow."""
        return {"fetch": self._fetching.policy.table(), **self._fetching.counts()}

    def _try_peers(self) -> None:
        """Find out before loading by which type of handle the ranks can read each other."""
        check_told_alike(self._config, self._session.gather)
        uses_host = self._config.host_experts != 0
        probe = PeerProbe(self._driver, job_rank=self.job_rank, uses_host=uses_host)
        handle_type = self._handle_type = self._session.try_peers(probe)
        if handle_type is None:
            return
        if self._config.host_experts and handle_type is not HandleType.FILE_DESCRIPTOR:
            raise ConfigError(
                "dwdp.host_experts needs ranks that hand each other memory as file descriptors, "
                f"got {TYPE_NAMES[handle_type]}; leave it out, or make groups of ranks on one host "
                "(dwdp.dwdp_size)."
            )
        size = self._settings.dwdp_size
        logger.info(
            "All %d pairs of the group's %d ranks read each other's %s memory, handed over as %s.",
            *(size * (size - 1), size, self._driver.kind, TYPE_NAMES[handle_type]),
        )
        check_shared_gpus(
            GpuUse(self._memory.gpu_name, self._kv_cache_bytes),
            self._session.gather,
            first_rank=self.job_rank - self.rank,
        )

    def _check_memory(self, model: torch.nn.Module) -> None:
        """Called when the model is built and before weights are read."""
        self._memory.give_back()
        layers = self.registry.layers
        of_experts = sum(p.nbytes for layer in layers for p in layer.expert_parameters().values())
        other_bytes = sum(p.nbytes for p in model.parameters()) - of_experts
        self._choose_host_experts(other_bytes)
        layout = self._layout()  # with the experts that were chosen for the host
        check_host_memory(self._config, layout, self._session.gather)
        given, memory = self._kv_cache_bytes, self._memory
        check = MemoryCheck(
            self._config,
            layout,
            job_rank=self.job_rank,
            other_bytes=other_bytes,
            may_use_host=memory.kind == "cuda" and self._handle_type is not HandleType.FABRIC,
            limits=VllmLimits(self._budget_bytes if given is None else None, given),
        )
        self._has_room_for_slots = check.run(memory, self._session.gather)

    def _choose_host_experts(self, other_bytes: int) -> None:
        budget_bytes = self._budget_bytes
        if (given := self._kv_cache_bytes) is not None:
            taken = other_bytes if self._memory.is_taken_at_once else 0
            budget_bytes = self._memory.free_bytes() + taken - given
        choose_host_experts(
            self._config,
            self.registry.layers,
            self._layout(),
            other_bytes=other_bytes,
            budget_bytes=budget_bytes,
            gather=self._session.gather,
        )

    def _layout(self) -> RankLayout:
        """Of the layers as they are built, with as many slots as there may be."""
        layers = self.registry.layers
        layouts = tuple(layer_layout(layer, self._driver.granularity) for layer in layers)
        return RankLayout(layouts, self.rank, usable_slots(self._config.num_slots, len(layouts)))

    def _check_limits(self, layout: RankLayout) -> None:
        if self._is_on_host:
            tensors = itertools.chain.from_iterable(layout.layouts)
            check_map_budget(sum(len(t.blocks) + len(t.private_spans) for t in tensors))
        ensure_descriptors(num_descriptors_needed(layout))

    def _manifest(self, model: torch.nn.Module, layers: list[DwdpRoutedExperts]) -> Manifest:
        model_config = self._vllm_config.model_config
        of_ranks = {id(p) for layer in layers for p in layer.expert_parameters().values()}
        of_ranks |= {id(p) for layer in layers for p in layer.input_scales().values()}
        return Manifest(
            dwdp_version=importlib.metadata.version("vllm-dwdp"),
            model_fingerprint=model_fingerprint(model, model_config, of_ranks),
            dtype=str(model_config.dtype),
            quantization=str(model_config.quantization),
            placement=layers[0].placement.ranges,
            host_experts=layers[0].placement.host_experts,
            memory_kind=self._driver.kind,
            granularity=self._driver.granularity,
            tensors=tuple(schema for layer in layers for schema in _schemas(layer)),
        )

    def _meet(self, manifest: Manifest, experts: RankExperts) -> None:
        self._session.meet(manifest)
        self._session.hand_over(experts.handles, num_parcels=experts.layout.num_parcels)

    def _bind(
        self, layers: list[DwdpRoutedExperts], experts: RankExperts, run_step: RunStep
    ) -> None:
        bound = BoundLayers(layers, experts.layout, self._memory)
        experts.connect(self._session.take_handles)
        bound.bind(experts.direct)
        self._fetching = self._make_fetching(bound, experts)
        self._fetching.decide(run_step)
        if slots := self._fetching.make_slots():
            if self._is_on_host:
                check_map_budget(slots.num_maps)
            for layer_idx, layer in enumerate(layers):
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

    def _report(self, layers: list[DwdpRoutedExperts], experts: RankExperts) -> None:
        self.stats = {
            "rank": self.job_rank,
            "job_size": self._settings.job_size,
            "group": self.job_rank // self._settings.dwdp_size,
            "dwdp_size": self._settings.dwdp_size,
            "memory": self._driver.kind,
            "handles": TYPE_NAMES[self._handle_type] if self._handle_type else "none",
            "numa_node": self._memory.numa_node,
            **expert_stats(layers, experts),
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


def _schemas(layer: DwdpRoutedExperts) -> list[TensorSchema]:
    return [
        TensorSchema(layer.layer_name, name, shape, str(layer.dtypes[name]))
        for name, shape in layer.full_shapes.items()
    ]
