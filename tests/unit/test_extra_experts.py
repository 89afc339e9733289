# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Copies of extra experts: which are chosen, what is missing then, and what views show."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dwdp._core import HandleType, HostDriver
from vllm_dwdp.config import ConfigError, DwdpConfig
from vllm_dwdp.layout.extra_experts import choose_pages, with_extra_experts
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.memory.estimate import CUT_SLOTS, MemoryEstimate, slot_bytes
from vllm_dwdp.memory.limits import most_extra_experts, num_descriptors_needed
from vllm_dwdp.rank.counts_file import CountsFile
from vllm_dwdp.rank.expert_counts import ExpertCounts
from vllm_dwdp.rank.experts import RankExperts

PAGE = 4096
EVERYTHING = 1 << 60


@st.composite
def cases(draw):
    """(layouts of two layers, counts of how often each expert was chosen by each rank's tokens)."""
    num_experts = draw(st.integers(2, 24))
    dwdp_size = draw(st.integers(1, min(4, num_experts)))
    has_host = draw(st.booleans()) and num_experts >= 2 * dwdp_size
    placement = Placement.make(
        num_experts=num_experts, dwdp_size=dwdp_size, host_experts=1 if has_host else 0
    )
    rows = draw(st.lists(st.integers(100, 5 * PAGE), min_size=1, max_size=3))
    layer = tuple(
        TensorLayout(ExpertTensor(f"w{i}", r), placement, PAGE) for i, r in enumerate(rows)
    )
    counts = st.lists(st.integers(0, 9), min_size=num_experts, max_size=num_experts)
    of_rank = st.lists(counts, min_size=2, max_size=2)
    return (layer, layer), draw(st.lists(of_rank, min_size=dwdp_size, max_size=dwdp_size))


def wishes_of(layouts, counts, num_bytes, max_experts=EVERYTHING):
    return [
        choose_pages(RankLayout(layouts, r), one, num_bytes=num_bytes, max_experts=max_experts)
        for r, one in enumerate(counts)
    ]


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(0, 60 * PAGE))
def test_copies_fit_and_take_away_just_what_is_missing(case, num_bytes):
    layouts, counts = case
    wishes = wishes_of(layouts, counts, num_bytes)
    for rank, wished in enumerate(wishes):
        before = RankLayout(layouts, rank)
        after = with_extra_experts(before, wishes)
        size = sum(run[-1] for run in wished)
        assert size <= num_bytes
        assert sum(before.missing_bytes(i) - after.missing_bytes(i) for i in range(2)) == size
        for layer_idx in range(2):
            sizes = [b.extent.num_bytes for b in after.sourced_blocks(layer_idx)]
            assert sum(sizes) == sum(b.extent.num_bytes for b in before.sourced_blocks(layer_idx))
            resident = sum(b.extent.num_bytes for b in after.resident_blocks(layer_idx))
            assert resident + after.missing_bytes(layer_idx) == sum(sizes)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_with_enough_memory_every_expert_that_was_chosen_is_whole(case):
    layouts, counts = case
    wishes = wishes_of(layouts, counts, EVERYTHING)
    for rank in range(len(counts)):
        layout = with_extra_experts(RankLayout(layouts, rank), wishes)
        for layer_idx, expert in itertools.product(range(2), range(len(counts[0][0]))):
            if counts[rank][layer_idx][expert]:
                for block in layout.missing_blocks(layer_idx):
                    row = layouts[layer_idx][block.tensor_idx].tensor.expert_bytes
                    start, end = expert * row, (expert + 1) * row
                    extent = block.extent
                    assert extent.start + extent.num_bytes <= start or end <= extent.start


@settings(max_examples=150, deadline=None)
@given(cases())
def test_all_ranks_cut_the_same_blocks(case):
    layouts, counts = case
    wishes = wishes_of(layouts, counts, 20 * PAGE)
    made = [with_extra_experts(RankLayout(layouts, r), wishes).layouts for r in range(len(counts))]
    assert all(one == made[0] for one in made)


def layouts_of_one_layer(num_experts=8, dwdp_size=2, row=2 * PAGE):
    placement = Placement.make(num_experts=num_experts, dwdp_size=dwdp_size)
    return ((TensorLayout(ExpertTensor("w", row), placement, PAGE),),)


def test_the_experts_chosen_most_come_first_and_neighbours_are_one_run():
    layouts = layouts_of_one_layer()
    counts = [[9, 9, 9, 9, 2, 5, 7, 4]]
    (runs,) = wishes_of(layouts, [counts], 2 * 2 * PAGE)
    assert runs == [(0, 0, 5 * 2 * PAGE, 2 * 2 * PAGE)], "experts 5 and 6, which follow each other"
    (runs,) = wishes_of(layouts, [counts], EVERYTHING, max_experts=1)
    assert runs == [(0, 0, 6 * 2 * PAGE, 2 * PAGE)]
    (runs,) = wishes_of(layouts, [[[9, 9, 9, 9, 0, 0, 0, 0]]], EVERYTHING)
    assert runs == [], "an expert that nobody chose stays where it is"


def test_wishes_of_a_peer_with_another_model_are_left_to_the_manifests():
    layout = RankLayout(layouts_of_one_layer(), 0)
    made = with_extra_experts(layout, [[], [(5, 0, 0, PAGE)]])
    assert made == layout


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
@pytest.mark.parametrize(
    ("num_experts", "dwdp_size", "rows", "page"),
    [
        (256, 8, (7168 * 4096, 2048 * 7168), 2 << 20),
        (128, 2, (2048 * 768 * 4, 768 * 2048 * 2), 2 << 20),
        (128, 4, (2048 * 768 * 4, 768 * 2048 * 2), PAGE),
    ],
    ids=["DeepSeek-R1", "Qwen3-30B", "Qwen3-30B on hosts"],
)
def test_cuts_hardly_make_slots_larger(num_experts, dwdp_size, rows, page, share):
    draws = random.Random(0)
    placement = Placement.make(num_experts=num_experts, dwdp_size=dwdp_size)
    layer = tuple(TensorLayout(ExpertTensor(str(row), row), placement, page) for row in rows)
    layout = RankLayout((layer,) * 8, 0, num_slots=2)
    weights = [1000 // (i + 1) for i in range(num_experts)]
    counts = [[draws.sample(weights, num_experts) for _ in range(8)] for _ in range(dwdp_size)]
    missing = sum(map(layout.missing_bytes, range(8)))
    made = with_extra_experts(layout, wishes_of(layout.layouts, counts, round(share * missing)))
    assert sum(map(made.missing_bytes, range(8))) < missing
    assert slot_bytes(made) <= CUT_SLOTS * slot_bytes(layout)


SHAPES = {"w13": (48, 40), "w2": (40, 24), "bias": (48,), "large": (1024, 520)}


@pytest.mark.parametrize("dwdp_size", [2, 3])
def test_views_show_the_same_with_copies(dwdp_size):
    torch.manual_seed(0)
    num_experts = 7
    tensors = {name: torch.randn(num_experts, *shape) for name, shape in SHAPES.items()}
    placement = Placement.make(num_experts=num_experts, dwdp_size=dwdp_size)
    layer = tuple(
        TensorLayout(ExpertTensor(name, t[0].nbytes), placement, PAGE)
        for name, t in tensors.items()
    )
    counts = [[torch.randint(0, 3, (num_experts,)).tolist()] for _ in range(dwdp_size)]
    wishes = wishes_of((layer,), counts, EVERYTHING)
    ranks = []
    for rank in range(dwdp_size):
        layout = with_extra_experts(RankLayout((layer,), rank), wishes)
        experts = RankExperts(HostDriver(name=f"dwdp-rank{rank}"), layout)
        first = placement.local_experts(rank).start
        experts.adopt_layer([t[first:].data_ptr() for t in tensors.values()])
        experts.seal()
        ranks.append(experts)

    def take_handles(peer, parcel, expected_sizes):
        found = ranks[peer].handles(HandleType.FILE_DESCRIPTOR, parcel)
        assert [num_bytes for _, num_bytes in found] == list(expected_sizes)
        return [fd for fd, _ in found]

    for rank, experts in enumerate(ranks):
        experts.connect(take_handles)
        assert experts.views.num_extra_bytes == sum(run[-1] for run in wishes[rank]) > 0
        shows(experts.direct[0], layer, tensors)
        slots = experts.make_slots(1, slice_bytes=1 << 20)
        on_slot = experts.build_on_slot(0)
        fill(slots, experts)
        shows(on_slot, layer, tensors)
        own = experts.shard.num_block_bytes
        assert experts.views.num_peer_bytes + experts.views.num_extra_bytes + own >= sum(
            extent.num_bytes for tensor in layer for extent in tensor.blocks
        )


def fill(slots, experts):
    """Copy what the rank lacks to its slot, through the same addresses as a copier does."""
    (copies,) = experts.copies(lambda chosen: chosen)
    driver = HostDriver()
    for peer, destination, source, num_bytes in itertools.chain.from_iterable(copies.chosen):
        assert peer != experts.layout.rank
        driver.copy(destination, source, num_bytes)
    assert sum(copies.bytes_by_peer) == experts.layout.missing_bytes(0) <= slots.num_bytes


def shows(views, layer, tensors):
    for view, layout in zip(views, layer, strict=True):
        shown = torch.from_dlpack(view.bytes_tensor())[: layout.num_bytes]
        expected = tensors[layout.tensor.name].contiguous().view(torch.uint8).flatten()
        assert torch.equal(shown, expected)


def test_copies_count_among_descriptors_and_in_the_estimate():
    layouts = layouts_of_one_layer()
    layout = RankLayout(layouts, 0)
    made = with_extra_experts(layout, [[(0, 0, 5 * 2 * PAGE, 2 * PAGE)], []])
    assert len(made.extra) == 1
    before, after = (num_descriptors_needed(one, has_files=True) for one in (layout, made))
    assert after == before + 2 + 1, "the peer's block in three parts, and the copy"
    estimate = MemoryEstimate.make(layout, other_bytes=0, extra_bytes=3 * PAGE)
    without = MemoryEstimate.make(layout, other_bytes=0)
    assert estimate.in_all == without.in_all + 3 * PAGE
    assert "extra experts" in estimate.describe() and "extra" not in without.describe()
    most = MemoryEstimate.make(layout, other_bytes=0, extra_bytes=EVERYTHING)
    assert most.extra == layout.missing_bytes(0)


def test_the_number_of_copies_keeps_within_the_mappings_of_a_process():
    layout = RankLayout(layouts_of_one_layer(num_experts=64, row=64 * PAGE), 0)
    assert most_extra_experts(layout, max_map_count=0) == 0
    held = len(Path("/proc/self/maps").read_text().splitlines())
    few = most_extra_experts(layout, max_map_count=held + 5_000)
    assert 0 < few < most_extra_experts(layout, max_map_count=held + 60_000)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_counts_leave_out_padding(dtype):
    counts = ExpertCounts([4, 6], "cpu")
    counts.add(1, torch.tensor([[0, 5], [5, -1], [-1, -1]], dtype=dtype))
    counts.add(0, torch.tensor([[3, 3]], dtype=dtype))
    assert counts.read() == [[0, 0, 0, 2], [1, 0, 0, 0, 0, 2]]
    counts.clear()
    assert not any(map(any, counts.read()))


def test_counts_are_kept_from_run_to_run(tmp_path):
    def a_run():
        return CountsFile(tmp_path / "model", rank=0, num_experts=[2, 3])

    file = a_run()
    assert file.load() is None
    file.save([[0, 0], [0, 0, 0]])
    assert not (tmp_path / "model").exists(), "a run without tokens saves nothing"
    file.save([[3, 1], [0, 6, 2]])
    file.save([[4, 1], [0, 6, 2]])
    assert file.load() == [[4, 1], [0, 6, 2]], "a run replaces what it has saved"
    later = a_run()
    for _ in range(2):
        later.save([[1, 1], [1, 1, 1]])
        assert later.load() == [[3, 1], [1, 4, 2]], "earlier counts weigh half"
    a_run().save([[0, 0], [0, 0, 0]])
    assert a_run().load() == [[3, 1], [1, 4, 2]]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["rank-0.json"]


def test_a_new_rank_begins_with_the_counts_of_all_others(tmp_path):
    for rank, counts in enumerate(([[1, 2]], [[5, 0]])):
        CountsFile(tmp_path, rank=rank, num_experts=[2]).save(counts)
    assert CountsFile(tmp_path, rank=2, num_experts=[2]).load() == [[6, 2]]
    assert CountsFile(tmp_path, rank=1, num_experts=[2]).load() == [[5, 0]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "{}",
        "[1]",
        "[[1, 2, 3]]",
        "[[1], [2]]",
        '[["a", 1]]',
        "[[-1, 1]]",
        "[[true, 1]]",
    ],
)
def test_a_file_with_something_else_is_ignored(tmp_path, text):
    (tmp_path / "rank-0.json").write_text(text)
    file = CountsFile(tmp_path, rank=0, num_experts=[2])
    assert file.load() is None
    file.save([[1, 2]])
    assert file.load() == [[1, 2]]


@pytest.mark.parametrize("value", [-1, 1.5, True, False, "1 GiB", None])
def test_a_whole_number_of_bytes_is_expected(value):
    with pytest.raises(ConfigError, match=r"extra_expert_bytes must be a whole number"):
        DwdpConfig(extra_expert_bytes=value)
