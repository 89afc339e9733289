# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks whether a rank's model fits into its memory, before any weight is read.

* The model is built by then, so the shapes of its tensors are known.
* Ranks of a group that share one memory, as those of a host do, add up what they need.
* Slots count as needed if `dwdp.fetch` asks for copies. For 'auto' it is not known yet whether
  copies pay. If one rank of the group has no room for slots, no rank makes any.
"""

import itertools
import json
from typing import NamedTuple

from vllm.logger import init_logger

from vllm_dwdp.config import AUTO, DwdpConfig, FetchMode
from vllm_dwdp.device.base import RankMemory
from vllm_dwdp.group.session import Gather
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.memory.estimate import MemoryEstimate, gib, loaded_bytes
from vllm_dwdp.memory.limits import LimitError

logger = init_logger("vllm.dwdp")


class VllmLimits(NamedTuple):
    """The limit that vLLM was given: on all its memory, or on the KV cache. The other is None."""

    budget_bytes: int | None
    kv_cache_bytes: int | None


class Need(NamedTuple):
    """Bytes that one rank needs of a memory, `place`, and that it finds free or has allocated."""

    place: str
    free_bytes: int
    allocated_bytes: int
    needed_bytes: int


class MemoryCheck:
    """The check of one rank. Its sentences name the options that help."""

    def __init__(
        self,
        config: DwdpConfig,
        layout: RankLayout,
        *,
        job_rank: int,
        other_bytes: int,
        limits: VllmLimits,
        may_use_host: bool = False,
    ) -> None:
        """layout: with as many slots as the rank may make. other_bytes: of all weights but experts.

        may_use_host: whether experts may lie in host memory.
        """
        self._may_use_host = may_use_host
        self._config = config
        self._layout = layout
        self._job_rank = job_rank
        self._other_bytes = other_bytes
        self._limits = limits
        self._in_place = self._estimate(0)
        copies = config.fetch != FetchMode.DIRECT
        self._copying = self._estimate(layout.num_slots if copies else 0)
        self._certain = self._in_place if config.fetch == AUTO else self._copying

    def run(self, memory: RankMemory, gather: Gather) -> bool:
        """Raise LimitError, with numbers and the options that help, if the model can't fit.

        Returns whether every rank of the group has room for slots.
        """
        logger.info(
            "dwdp rank %d will hold %s of weights: %s%s%s",
            *(self._job_rank, gib(self._copying.in_all), self._copying.describe()),
            _of_host(self._copying.on_host),
            " (slots only if copies turn out to pay)" if self._certain != self._copying else "",
        )
        self._check_budget()
        allocated = self._other_bytes + self._loaded_bytes if memory.is_taken_at_once else 0
        free = memory.free_bytes()
        self._check_free(Need(memory.place, free, allocated, self._needed_bytes), gather)
        left = self._left_by_slots(free + allocated)
        self._advise(left)
        fits = left >= 0 or not self._copying.slots
        return all(json.loads(data) for data in gather("slots", json.dumps(fits).encode()))

    @property
    def _needed_bytes(self) -> int:
        return self._certain.most + (self._limits.kv_cache_bytes or 0)

    @property
    def _loaded_bytes(self) -> int:
        """Bytes of the rank's own experts as they are loaded; 0 if they load to host memory."""
        if self._config.host_experts:
            return 0
        return sum(loaded_bytes(one, self._layout.rank) for one in self._layout.layouts)

    def _check_budget(self) -> None:
        budget = self._limits.budget_bytes
        if budget is not None and self._certain.in_all >= budget:
            raise LimitError(
                f"expected room for {gib(self._certain.in_all)} of weights "
                f"({self._certain.describe()}), vLLM may use {gib(budget)} in all, KV cache "
                f"included; raise --gpu-memory-utilization, {self._remedies(self._certain)}."
            )

    def _check_free(self, own: Need, gather: Gather) -> None:
        """Raise LimitError unless the ranks of the group that use this memory all fit into it."""
        needs = [Need(*json.loads(data)) for data in gather("memory", json.dumps(own).encode())]
        here = [need for need in needs if need.place == own.place]
        needed = sum(need.needed_bytes for need in here)
        free = min(need.free_bytes for need in here) + sum(need.allocated_bytes for need in here)
        if needed > free:
            kv_cache = self._limits.kv_cache_bytes
            raise LimitError(
                f"expected {gib(needed)} of free memory on {own.place} for {len(here)} rank(s) of "
                f"the group, got {gib(free)}; this one needs {gib(own.needed_bytes)} "
                f"({self._certain.describe()}, {gib(self._certain.layer)} of a layer that is in "
                f"memory {self._certain.why_a_layer}{_of_kv_cache(kv_cache)}); free memory there, "
                f"{self._remedies(self._certain)}."
            )

    def _left_by_slots(self, usable_bytes: int) -> int:
        """Bytes that vLLM may use beyond weights and slots; negative if these don't fit."""
        budget, kv_cache = self._limits
        room = budget if budget is not None else usable_bytes - (kv_cache or 0)
        return room - self._copying.in_all

    def _advise(self, left: int) -> None:
        """Warn if slots leave less than they take or, with a given KV cache, if they don't fit."""
        slots, has_budget = self._copying.slots, self._limits.budget_bytes is not None
        if slots and left < (slots if has_budget else 0):
            logger.warning(
                "Slots for copies of experts would take %s of dwdp rank %d and leave %s%s%s. To "
                "have more, %s.",
                *(gib(slots), self._job_rank, gib(max(0, left))),
                " for activations and the KV cache" if has_budget else " for activations",
                ": fetch=auto reads in place" if left < 0 else "",
                self._remedies(self._copying),
            )

    def _remedies(self, estimate: MemoryEstimate) -> str:
        """The options that lower an estimate, with what each saves."""
        found = []
        if estimate.slots:
            if (saved := estimate.slots - self._estimate(1).slots) > 0:
                found.append(f"set dwdp.num_slots to 1 ({gib(saved)} less)")
            found.append(f"set dwdp.fetch to 'direct' ({gib(estimate.slots)} less)")
        if estimate.extra:
            found.append(f"lower dwdp.extra_expert_bytes ({gib(estimate.extra)} less without it)")
        if (saved := self._redundant_bytes(estimate)) > 0:
            found.append(f"leave out dwdp.num_experts_per_worker ({gib(saved)} less)")
        if self._may_use_host and not self._config.num_experts_per_worker:
            found.append(self._remedy_on_host())
        found.append("start more ranks (--data-parallel-size)")
        return ", ".join(found[:-1]) + (", or " if found[:-1] else "or ") + found[-1]

    def _remedy_on_host(self) -> str:
        if not self._config.host_experts:
            return "set dwdp.host_experts to 'auto'"
        tensors = itertools.chain.from_iterable(self._layout.layouts)
        of_expert = sum(t.tensor.expert_bytes for t in tensors)
        return f"raise dwdp.host_experts ({gib(of_expert)} less for each)"

    def _redundant_bytes(self, estimate: MemoryEstimate) -> int:
        """Bytes of the experts that this rank owns beyond an even share."""
        placement, rank = self._layout.placement, self._layout.rank
        even = Placement.make(num_experts=placement.num_experts, dwdp_size=placement.dwdp_size)
        num_even, num_local = (len(p.local_experts(rank)) for p in (even, placement))
        return estimate.own * (num_local - num_even) // num_local

    def _estimate(self, num_slots: int) -> MemoryEstimate:
        return MemoryEstimate.make(
            self._layout.with_slots(num_slots),
            other_bytes=self._other_bytes,
            extra_bytes=self._config.extra_expert_bytes,
            loads_on_host=self._config.host_experts != 0,
        )


def _of_host(num_bytes: int) -> str:
    return f"; and {gib(num_bytes)} of experts in host memory" if num_bytes else ""


def _of_kv_cache(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f", {gib(num_bytes)} of KV cache"
