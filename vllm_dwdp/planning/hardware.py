# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What one rank's hardware can do at best, read from a profile in YAML."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vllm_dwdp.planning import profiles
from vllm_dwdp.planning.errors import PlanError

PRECISIONS = ("bf16", "fp8", "fp4")
SHARES = ("attention", "dense", "grouped", "memory", "copy", "exchange")
KINDS = ("gpu", "cpu")


@dataclass(frozen=True)
class Hardware:
    """Peak figures of one rank: a GPU, or a part of a host. All sizes and rates in bytes.

    link: one way, out of all peers' memory together; peer_link: out of one peer's memory, if less.
    flops: floating-point operations per second by precision, dense.
    shares: what kernels achieve, as shares of the peaks, where it isn't as in `constants`.
    domain: ranks that can reach each other's memory.
    """

    name: str
    kind: str
    memory: float
    memory_rate: float
    link: float
    flops: Mapping[str, float]
    domain: int
    peer_link: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)

    def precision(self, wanted: str) -> str:
        """The precision in which weights of `wanted` are multiplied: without it, in BF16."""
        return wanted if wanted in self.flops else "bf16"

    def link_among(self, num_ranks: int) -> float:
        """Bytes per second out of peers' memory in a group: a mesh has a link for each peer."""
        if self.peer_link is None:
            return self.link
        return min(self.link, self.peer_link * max(1, num_ranks - 1))


def read_hardware(place: str) -> Hardware:
    """The profile at `place`: a name in configs/hardware, or a file like those there.

    Raises PlanError if there is no such profile, or if it lacks a figure.
    """
    known = profiles.names(profiles.HARDWARE)
    if place.lower() in known:
        return _read(profiles.path(profiles.HARDWARE, place.lower()))
    if not Path(place).is_file():
        raise PlanError(
            f"expected hardware out of {', '.join(known)}, or a profile's file, got {place!r}; "
            "measure this machine with --calibrate, or write a profile like those in "
            "configs/hardware."
        )
    return _read(Path(place))


def _read(path: Path) -> Hardware:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f"expected a profile in YAML at {path}: {error}.") from error
    if not isinstance(found, dict):
        raise PlanError(f"expected a mapping in {path}, got {type(found).__name__}.")
    return from_profile(found, path)


def from_profile(found: Mapping[str, Any], path: Path) -> Hardware:
    """The hardware that a profile describes; path: of the profile, for errors."""
    tflops = found.get("tflops")
    rates = tflops if isinstance(tflops, dict) else {}
    shares = found.get("achieved_shares") or {}
    peer = found.get("peer_link_gb_per_s")
    return Hardware(
        name=str(found.get("name") or path.stem),
        kind=_kind(found.get("kind"), path),
        memory=1e9 * _figure(found, "memory_gb", path),
        memory_rate=1e9 * _figure(found, "memory_gb_per_s", path),
        link=1e9 * _figure(found, "link_gb_per_s", path),
        flops={p: 1e12 * _figure(rates, p, path) for p in ("bf16", *rates) if _known(p, path)},
        domain=int(_figure(found, "domain", path)),
        peer_link=None if peer is None else 1e9 * _figure(found, "peer_link_gb_per_s", path),
        shares={name: _figure(shares, name, path) for name in shares if _share(name, path)},
    )


def _kind(found: object, path: Path) -> str:
    if found not in KINDS:
        raise PlanError(f"expected 'gpu' or 'cpu' as kind in {path}, got {found!r}.")
    return str(found)


def _known(precision: str, path: Path) -> bool:
    if precision not in PRECISIONS:
        raise PlanError(
            f"expected {', '.join(PRECISIONS)} under tflops in {path}, got {precision}."
        )
    return True


def _share(name: str, path: Path) -> bool:
    if name not in SHARES:
        raise PlanError(f"expected {', '.join(SHARES)} as achieved_shares in {path}, got {name}.")
    return True


def _figure(found: Mapping[str, Any], name: str, path: Path) -> float:
    """A figure of a profile: `{value: 80, source: ...}`, or the number alone."""
    entry = found.get(name)
    value = entry.get("value") if isinstance(entry, dict) else entry
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise PlanError(f"expected a number above 0 as {name} in {path}, got {value!r}.")
    return float(value)
