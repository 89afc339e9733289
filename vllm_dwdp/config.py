# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""DwdpConfig: the user's options, parsed and checked before any process or weight exists."""

import dataclasses
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

CONFIG_KEY = "dwdp"
AUTO = "auto"
DEFAULT_NUM_SLOTS = 2
DEFAULT_MAX_WAIT_MS = 100.0
DEFAULT_TIMEOUT_S = 540.0
"""Longer than slow storage takes for one layer of a large model."""

MAX_WAIT_MS = 600_000.0
"""Ten minutes: by then most clients have given up."""

SMALLEST, LARGEST = 1e-6, 1e9
"""Bounds of the bandwidths and times that a user may give. Sums of such values stay finite."""


class FetchMode(StrEnum):
    """How a step gets the experts that its rank lacks."""

    DIRECT = "direct"
    PREFETCH = "prefetch"
    SELECTIVE = "selective"


FETCH_MODES = (AUTO, *(mode.value for mode in FetchMode))


class ConfigError(ValueError):
    """The configuration can't work; the message says what to change."""


@dataclass(frozen=True)
class DwdpConfig:
    """The `dwdp` section of vLLM's `--additional-config`. Raises ConfigError for a bad value.

    The table of docs/configuration.md is made of these lines.

    dwdp_size: ranks that share one copy of the experts; default: the data-parallel size.
    num_experts_per_worker: experts that each rank owns; default: as even as possible.
    host_experts: on GPUs, how many of a rank's experts lie in the memory of the host, which GPUs
        read over their bus; 'auto': as many as don't fit into the GPU.
    extra_expert_bytes: bytes of spare memory in which a rank keeps copies of those experts of other
        ranks, or of its host's memory, that its tokens have chosen most in earlier runs.
    fetch: how a step gets the experts that its rank lacks; 'auto': the cheapest way for its number
        of tokens.
    num_slots: slots, each of which is local memory for the experts that one layer lacks; at most
        the number of MoE layers.
    slice_bytes: the size of the largest slice of a copy, which is also the most that a round of
        copies reads from one peer; at least a page; default: 1 MiB, on GPUs 16 to 64 MiB.
    copy_threads: threads that copy, on host memory; at most the cores of a rank.
    batched_copies: on a GPU, give the driver a round of copies in one call, if it has such a call;
        off by default, because drivers have crashed and hung on it.
    load_concurrency: how many ranks of a group load at the same time on one host; default: all.
    min_tokens_per_step: prompt tokens that wait before a step of prompts starts; 'auto': enough to
        hide a prefetch; default: a step starts at once, as in stock vLLM.
    max_wait_ms: the longest time in milliseconds that prompts wait for `min_tokens_per_step`; above
        0, at most 600000; default: 100.
    link_gb_per_s: bandwidth out of peers' memory in GB (10^9 bytes) per second; from 1e-6 to 1e9;
        default: measured.
    compute_us_per_token: microseconds that one layer computes for one token; from 1e-6 to 1e9;
        default: measured.
    layer_metrics: show a metric for each layer on `/metrics` too.
    require_secret: refuse a start-up store that other hosts can reach if ranks have no secret.
    rendezvous: 'host:port' of the start-up store, which rank 0 hosts; default: from
        vLLM's data-parallel options.
    timeout_s: for how many seconds a rank may make no progress in its start before every rank gives
        up; above 0, at most 86400.
    """

    dwdp_size: int | None = None
    num_experts_per_worker: int | None = None
    host_experts: int | str = 0
    extra_expert_bytes: int = 0
    fetch: str = AUTO
    num_slots: int = DEFAULT_NUM_SLOTS
    slice_bytes: int | None = None
    copy_threads: int = 1
    batched_copies: bool = False
    load_concurrency: int | None = None
    min_tokens_per_step: int | str | None = None
    max_wait_ms: float | None = None
    link_gb_per_s: float | None = None
    compute_us_per_token: float | None = None
    layer_metrics: bool = False
    require_secret: bool = True
    rendezvous: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S

    def __post_init__(self) -> None:
        self._check_experts()
        if self.fetch not in FETCH_MODES:
            raise ConfigError(f"dwdp.fetch must be one of {FETCH_MODES}, got {self.fetch!r}.")
        self._check_counts()
        self._check_max_wait()
        self._check_numbers()
        for name in ("batched_copies", "layer_metrics", "require_secret"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"dwdp.{name} must be true or false, got {getattr(self, name)!r}."
                )
        if self.rendezvous is not None:
            parse_endpoint(self.rendezvous)

    def _check_experts(self) -> None:
        _check_count("dwdp_size", self.dwdp_size)
        _check_count("num_experts_per_worker", self.num_experts_per_worker)
        if self.host_experts not in (0, AUTO) or isinstance(self.host_experts, bool):
            _check_count("host_experts", self.host_experts, may_be_none=False)
        if self.extra_expert_bytes != 0 or isinstance(self.extra_expert_bytes, bool):
            _check_count("extra_expert_bytes", self.extra_expert_bytes, may_be_none=False)
        if self.host_experts != 0 and self.num_experts_per_worker is not None:
            raise ConfigError(
                "dwdp.host_experts and dwdp.num_experts_per_worker can't go together: leave one of "
                "them out."
            )

    def _check_counts(self) -> None:
        _check_count("slice_bytes", self.slice_bytes)
        _check_count("load_concurrency", self.load_concurrency)
        if self.min_tokens_per_step != AUTO:
            _check_count("min_tokens_per_step", self.min_tokens_per_step)
        for name in ("num_slots", "copy_threads"):
            _check_count(name, getattr(self, name), may_be_none=False)
        if self.slice_bytes is not None and self.slice_bytes < mmap.PAGESIZE:
            raise ConfigError(
                f"dwdp.slice_bytes must be at least a page of {mmap.PAGESIZE} bytes, got "
                f"{self.slice_bytes}."
            )

    def _check_numbers(self) -> None:
        for name in ("link_gb_per_s", "compute_us_per_token"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and SMALLEST <= value <= LARGEST):
                raise ConfigError(
                    f"dwdp.{name} must be a number from {SMALLEST} to {LARGEST}, got {value!r}."
                )
        if not _is_number(self.timeout_s) or not 0 < self.timeout_s <= 86_400:
            raise ConfigError(
                f"dwdp.timeout_s must be seconds between 0 and 86400, got {self.timeout_s!r}."
            )

    def _check_max_wait(self) -> None:
        wait = self.max_wait_ms
        if wait is None:
            return
        if self.min_tokens_per_step is None:
            raise ConfigError(
                "dwdp.max_wait_ms has no effect without dwdp.min_tokens_per_step: set both, or "
                "leave max_wait_ms out."
            )
        if not _is_number(wait) or not 0 < wait <= MAX_WAIT_MS:
            raise ConfigError(
                f"dwdp.max_wait_ms must be milliseconds between 0 and {MAX_WAIT_MS:.0f}, got "
                f"{wait!r}."
            )

    @property
    def given_host_experts(self) -> int:
        """The number that the user gives; 0 for 'auto', whose number depends on the model."""
        return 0 if isinstance(self.host_experts, str) else self.host_experts

    @property
    def max_wait_s(self) -> float:
        """The longest time in seconds that prompts wait for `min_tokens_per_step`."""
        return (DEFAULT_MAX_WAIT_MS if self.max_wait_ms is None else self.max_wait_ms) / 1e3

    @classmethod
    def parse(cls, section: Any) -> "DwdpConfig":
        """Read the user's section; raises ConfigError for unknown options and bad values."""
        if section is None:
            return cls()
        if not isinstance(section, Mapping):
            raise ConfigError(
                f"additional_config['{CONFIG_KEY}'] must be a JSON object, "
                f"got {type(section).__name__}: {section!r}."
            )
        valid = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(map(str, section)) - set(valid)):
            raise ConfigError(f"Unknown dwdp option(s) {unknown}; valid options are {valid}.")
        return cls(**section)


def usable_slots(num_slots: int, num_layers: int, *, of: str = "MoE layers") -> int:
    """How many slots a rank makes: `num_slots`, but no more than there are layers to use them.

    of: what `num_layers` counts, for the error. Raises ConfigError if `num_slots` is more than the
    number of layers and more than the default.
    """
    if num_slots > max(num_layers, DEFAULT_NUM_SLOTS):
        raise ConfigError(
            f"dwdp.num_slots must be at most the model's {num_layers} {of}, got {num_slots}; "
            "more slots would never be filled."
        )
    return min(num_slots, num_layers)


def parse_endpoint(text: str) -> tuple[str, int]:
    """Split 'host:port'; an IPv6 host stands in brackets. Raises ConfigError."""
    bracketed, _, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    host = bracketed.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ConfigError(f"dwdp.rendezvous must be 'host:port', got {text!r}.")
    return host, int(port)


def _check_count(name: str, value: Any, *, may_be_none: bool = True) -> None:
    if value is None and may_be_none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"dwdp.{name} must be a whole number of at least 1, got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
