# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Contention at sources, against the distribution that the paper gives and against exact ones."""

import dataclasses
import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import yaml
from simulated import WHOLE_SHUFFLED, costs, full_steps, run

from vllm_dwdp.layout.copies import CopyPlan
from vllm_dwdp.layout.slots import SlotPiece
from vllm_dwdp.simulation.pull_order import Order, peers_in_order, slices_in_rounds
from vllm_dwdp.simulation.scenario_file import read_scenarios
from vllm_dwdp.simulation.sections import Copies, Pulls
from vllm_dwdp.simulation.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
PAPER_TABLE_2 = {
    3: (50.0, 50.0),
    4: (44.44, 44.44, 11.11),
    8: (39.66, 39.66, 16.52, 3.67, 0.46),
}
"""Percent of pulls by number of rivals, from Table 2 of arXiv 2604.01621, by ranks of a group."""


def rivals_of_random_phases(num_ranks: int, *, egress: float) -> list[float]:
    """Percent of pull time by number of rivals, in many groups that pull without a pause.

    Each group has phases of its own, because its ranks start at random.
    """
    ranks = num_ranks * (96 // num_ranks)
    outcome = run(
        ranks,
        costs(num_layers=10, peer_bytes=1, egress=egress),
        full_steps(10 * ranks),
        copies=WHOLE_SHUFFLED,
        dwdp_size=num_ranks,
        start_within_s=2.0 * num_ranks,
        seed=1,
    )
    return [100 * share for share in outcome.rivals]


@pytest.mark.parametrize("num_ranks", PAPER_TABLE_2)
def test_rivals_are_those_of_the_paper_if_rivals_slow_nobody(num_ranks):
    """The paper counts as if all pulls took equally long: so here, sources give all at once."""
    found = rivals_of_random_phases(num_ranks, egress=num_ranks - 1)
    published = PAPER_TABLE_2[num_ranks]
    assert found[: len(published)] == pytest.approx(published, abs=1.5)


def exact_rivals(num_ranks: int) -> list[float]:
    """Percent of pull time by number of rivals, if rivals slow each other.

    It is the steady state of a closed network of queues that share their server: an arrangement of
    ranks over sources has a weight of the product of n! over sources with n ranks.
    """
    others = [[peer for peer in range(num_ranks) if peer != rank] for rank in range(num_ranks)]
    time: Counter[int] = Counter()
    for sources in itertools.product(*others):
        readers = Counter(sources).values()
        weight = math.prod(map(math.factorial, readers))
        for number in readers:
            time[number] += weight * number
    return [100 * time[number] / time.total() for number in sorted(time)]


@pytest.mark.parametrize("num_ranks", [3, 4])
def test_rivals_that_slow_each_other_meet_longer_than_the_paper_counts(num_ranks):
    found = rivals_of_random_phases(num_ranks, egress=1.0)
    assert found == pytest.approx(exact_rivals(num_ranks), abs=1.5)
    assert found[0] < PAPER_TABLE_2[num_ranks][0] - 4


def speed_over_dep(ratio: float) -> dict[str, float]:
    """Tokens per second over those of expert parallelism, for the setting of Table 4."""
    rates = {}
    for name, variant in contention_variants().items():
        given = variant.scenario.workload
        lengths = dataclasses.replace(given.lengths, least_share=ratio)
        requests = dataclasses.replace(given, lengths=lengths).draw(variant.scenario.seed)
        rates[name] = simulate(variant.scenario, requests).tokens_per_s
    return {name: rate / rates["dep"] for name, rate in rates.items()}


def contention_variants():
    path = ROOT / "configs/scenarios/contention.yaml"
    wanted = ("dep", "whole, rotated", "spread")
    return {v.name: v for v in read_scenarios(path) if v.name in wanted}


def test_slices_help_most_where_compute_barely_covers_the_copies():
    """Table 4 of arXiv 2604.01621, ratio: without, with slices: 0.5: 0.995, 1.081; 0.8: 1.039,
    1.053."""
    short, long = speed_over_dep(0.5), speed_over_dep(0.8)
    gains = [speeds["spread"] / speeds["whole, rotated"] for speeds in (short, long)]
    assert gains[0] > gains[1] > 1
    assert short["whole, rotated"] == pytest.approx(0.995, abs=0.05)
    assert long["whole, rotated"] == pytest.approx(1.039, abs=0.05)
    assert short["spread"] > 1.05
    assert long["spread"] > 1.03


def slices(in_flight: int) -> float:
    copies = Copies(pulls=Pulls.SLICES, slice_mib=0.05 / 2**20, in_flight=in_flight)
    layer = costs(num_layers=4, attention_s=1.0, experts_s=2.0, peer_bytes=1)
    return run(4, layer, copies=copies, start_within_s=9.0, seed=2).tokens_per_s


def test_slices_help_only_if_several_are_in_flight():
    """Slices that go one at a time meet the same rivals as whole parts do."""
    whole = run(
        4,
        costs(num_layers=4, attention_s=1.0, experts_s=2.0, peer_bytes=1),
        copies=Copies(pulls=Pulls.WHOLE),
        start_within_s=9.0,
        seed=2,
    ).tokens_per_s
    assert slices(1) == pytest.approx(whole, rel=0.05)
    assert slices(3) > 1.1 * whole


def test_slices_from_all_peers_at_once_come_to_what_spread_says():
    layer = costs(num_layers=4, attention_s=1.0, experts_s=2.0, peer_bytes=1)
    spread = run(4, layer, start_within_s=9.0, seed=2)
    assert slices(3) == pytest.approx(spread.tokens_per_s, rel=0.01)


@pytest.mark.parametrize(("rank", "slice_bytes"), [(0, 4), (1, 10), (3, 3), (2, 100)])
def test_the_order_of_pulls_is_that_of_the_copy_plan(rank, slice_bytes):
    peers = peers_in_order(rank, 4, Order.ROTATED)
    pieces = [SlotPiece(peer, 0, 10 * peer, 0, 10) for peer in range(4) if peer != rank]
    plan = CopyPlan.make(pieces, rank=rank, num_ranks=4, slice_bytes=slice_bytes)
    found = [(peer, num_bytes) for peer, num_bytes in slices_in_rounds(peers, 10, slice_bytes)]
    assert found == [(one.peer, one.num_bytes) for one in plan.slices]


def test_the_table_of_the_paper_is_the_binomial_distribution():
    for num_ranks, published in PAPER_TABLE_2.items():
        exact = [
            100
            * math.comb(num_ranks - 2, k)
            * (num_ranks - 2) ** (num_ranks - 2 - k)
            / (num_ranks - 1) ** (num_ranks - 2)
            for k in range(len(published))
        ]
        assert exact == pytest.approx(published, abs=0.01)


def test_every_scenario_of_the_folder_is_read():
    paths = sorted((ROOT / "configs/scenarios").glob("*.yaml"))
    assert len(paths) >= 5
    for path in paths:
        assert len(read_scenarios(path)) >= 2, path
        assert yaml.safe_load(path.read_text())
