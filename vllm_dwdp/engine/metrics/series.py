# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The metrics of a rank: their names, what they mean, and how they follow from `dwdp_stats`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

METHOD = "dwdp_metrics"
"""The method of vLLM's EngineCore that reports the values."""

PREFIX = "dwdp:"
PENDING = "pending_prefill_tokens"
"""Key of a figure that the engine adds to `dwdp_stats`."""

KV_TOKENS = {
    "shared": "kv_tokens",
    "whole": "kv_with_all_experts",
    "expert_parallel": "kv_with_expert_parallelism",
}
"""By how ranks hold experts, the key in `dwdp_stats` of the tokens that fit into the KV cache."""

Stats = Mapping[str, Any]
Values = dict[str, float]
"""By value of a series' own label; the key is empty if it has no such label."""


@dataclass(frozen=True)
class Series:
    """A metric with the labels `model_name` and `engine`, and perhaps one of its own.

    read: the values out of a rank's statistics; empty if the rank has no such figure.
    """

    name: str
    help: str
    read: Callable[[Stats], Values]
    label: str | None = None
    is_counter: bool = False
    is_by_layer: bool = False

    @property
    def exposed_name(self) -> str:
        """The name on `/metrics`."""
        return PREFIX + self.name + ("_total" if self.is_counter else "")


def sum_by_mode(key: str) -> Callable[[Stats], Values]:
    def read(stats: Stats) -> Values:
        return {mode: float(sum(by_peer)) for mode, by_peer in stats[key].items()}

    return read


def sum_of(*keys: str) -> Callable[[Stats], Values]:
    """The sum of figures; empty if one of them isn't there."""

    def read(stats: Stats) -> Values:
        return {"": float(sum(stats[key] for key in keys))} if set(keys) <= set(stats) else {}

    return read


def numbered(values: Iterable[float]) -> Values:
    return {str(number): float(value) for number, value in enumerate(values)}


def kv_tokens(stats: Stats) -> Values:
    found = {holding: stats.get(key) for holding, key in KV_TOKENS.items()}
    return {holding: float(value) for holding, value in found.items() if value is not None}


def gained_kv_tokens(stats: Stats) -> Values:
    found = kv_tokens(stats)
    return {"": found["shared"] - found["whole"]} if found else {}


SERIES = (
    Series(
        "bytes_fetched",
        "Bytes of experts that were copied from peers or from host memory, by fetch mode.",
        sum_by_mode("bytes_fetched"),
        label="mode",
        is_counter=True,
    ),
    Series(
        "exposed_wait_seconds",
        "Seconds that layers waited for copies of experts.",
        lambda stats: {"": float(sum(stats["exposed_seconds"]))},
        is_counter=True,
    ),
    Series(
        "steps",
        "Steps of the model, by the fetch mode of their first MoE layer.",
        lambda stats: {mode: float(count) for mode, count in stats["steps"].items()},
        label="mode",
        is_counter=True,
    ),
    Series(
        "resident_expert_bytes",
        "Bytes of experts in this rank's own memory, without slots.",
        sum_of("expert_bytes_owned", "expert_bytes_private", "expert_bytes_extra"),
    ),
    Series(
        "mapped_expert_bytes",
        "Bytes of peers' memory that this rank has mapped.",
        sum_of("expert_bytes_from_peers"),
    ),
    Series("slot_bytes", "Bytes of slots for fetched experts.", sum_of("slot_bytes")),
    Series("group_size", "Ranks that share one copy of the experts.", sum_of("dwdp_size")),
    Series(
        "group_members_alive",
        "Ranks of the group, this one included, whose process lives. One on another host counts as "
        "alive, since this rank can't see it.",
        sum_of("members_alive"),
    ),
    Series(
        PENDING,
        "Prompt tokens that the engine has accepted and not computed yet.",
        sum_of(PENDING),
    ),
    Series(
        "kv_tokens",
        "Tokens for which the KV cache has room, and would have if the rank held all experts "
        "itself (whole) or its even share and no other (expert_parallel).",
        kv_tokens,
        label="experts",
    ),
    Series(
        "kv_tokens_gained",
        "Tokens that the KV cache holds more than if the rank held all experts itself.",
        gained_kv_tokens,
    ),
    Series(
        "layer_exposed_wait_seconds",
        "Seconds that a layer waited for copies of experts.",
        lambda stats: numbered(stats["exposed_seconds"]),
        label="layer",
        is_counter=True,
        is_by_layer=True,
    ),
)


def values_of(stats: Stats, *, by_layer: bool) -> dict[str, Values]:
    """The values of all series by name, without those by layer if these aren't wanted."""
    wanted = (series for series in SERIES if by_layer or not series.is_by_layer)
    return {series.name: series.read(stats) for series in wanted}
