# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Limits of the Linux kernel that a rank must fit: mappings per process and open files."""

import itertools
import os
import resource
import sys
from pathlib import Path

from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout

MAP_SHARE = 0.8
DESCRIPTOR_RESERVE = 256
DESCRIPTORS_OF_CUTS = 4
"""A copy of a block adds two parts at its owner, its own file, and a part that peers take."""


class LimitError(RuntimeError):
    """There is less memory, or the kernel allows fewer mappings or descriptors, than is needed."""


def num_maps_at_least(placement: Placement, *, num_layers: int, tensors_per_layer: int) -> int:
    """The fewest mappings that views of so many mapped tensors take: the blocks of all segments.

    A view has more if its blocks don't end where pages end: boundary pages before, between and
    after them.
    """
    return num_layers * tensors_per_layer * len(placement.segments())


def num_descriptors_needed(layout: RankLayout, *, has_files: bool) -> int:
    """The most descriptors that a rank holds at once.

    They are those of its own blocks and copies, of all peers' blocks of one layer, and of all
    fringes.

    has_files: whether each own block is a file that stays open, as on the host. A GPU's blocks have
    descriptors only while those of a layer are handed over.
    """
    by_layer = [sum(len(t.blocks_of(layout.rank)) for t in tensors) for tensors in layout.layouts]
    own = sum(by_layer) + len(layout.extra) if has_files else max(by_layer)
    of_peers = max(
        sum(len(t.blocks_of(peer)) for t in tensors for peer in layout.peers)
        for tensors in layout.layouts
    )
    return own + of_peers + layout.num_ranks


def check_map_budget(needed: int, *, max_map_count: int | None = None) -> None:
    """Raise LimitError when `needed` more mappings exceed 80 % of what the kernel has left."""
    limit = read_max_map_count() if max_map_count is None else max_map_count
    budget = _map_budget(limit)
    if needed > budget:
        raise LimitError(
            f"The expert views need {needed} memory mappings per process, "
            f"vm.max_map_count={limit} leaves {budget}; raise it: "
            f"sysctl -w vm.max_map_count={2 * (needed + limit)}"
        )


def most_extra_experts(layout: RankLayout, *, max_map_count: int | None = None) -> int:
    """The most extra experts that each rank of the group may keep within the kernel's limits.

    A copy cuts a block into three. Each part is one mapping in the direct view, and on a slot as
    many as it has pages. Each part of an own block, and each copy, has a descriptor.
    """
    limit = read_max_map_count() if max_map_count is None else max_map_count
    tensors = list(itertools.chain.from_iterable(layout.layouts))
    blocks = [extent for tensor in tensors for extent in tensor.blocks]
    if not blocks:
        return 0
    pages = max(extent.num_bytes for extent in blocks) // layout.granularity
    of_block = 1 + pages.bit_length()
    of_views = len(blocks) * of_block + sum(2 * len(t.private_spans) for t in tensors)
    of_expert = 2 * of_block * max(map(len, layout.layouts))
    by_maps = max(0, _map_budget(limit) - of_views) // (of_expert * layout.num_ranks)
    return min(by_maps, _most_by_descriptors(layout))


def _most_by_descriptors(layout: RankLayout) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return sys.maxsize
    used = num_descriptors_needed(layout, has_files=True) + DESCRIPTOR_RESERVE
    left = hard - used - _num_open_descriptors()
    of_expert = DESCRIPTORS_OF_CUTS * max(map(len, layout.layouts)) * layout.num_ranks
    return max(0, left) // of_expert


def ensure_descriptors(needed: int) -> None:
    """Make room for `needed` more descriptors; raises LimitError if the hard limit forbids it."""
    wanted = check_descriptors(needed)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_descriptors(needed: int) -> int:
    """The limit that this process needs to open `needed` more descriptors.

    Raises LimitError if the hard limit is lower. Changes nothing.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed + DESCRIPTOR_RESERVE + _num_open_descriptors()
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise LimitError(
            f"Sharing the experts needs {wanted} open files per process, the hard limit is "
            f"{hard}; raise it: ulimit -n {wanted}"
        )
    return wanted


def read_max_map_count() -> int:
    return int(Path("/proc/sys/vm/max_map_count").read_text())


def _map_budget(limit: int) -> int:
    return int((limit - _num_current_maps()) * MAP_SHARE)


def _num_current_maps() -> int:
    with open("/proc/self/maps", "rb") as maps:
        return sum(1 for _ in maps)


def _num_open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
