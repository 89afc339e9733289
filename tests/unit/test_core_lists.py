# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How ranks share the cores and the memory nodes of made-up hosts."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.setup.core_lists import (
    divide,
    memory_share,
    parse_core_lists,
    ranges_text,
    spread_lists,
)

GIB = 1 << 30
HOSTS = st.integers(1, 8).flatmap(
    lambda num_nodes: st.tuples(
        st.lists(st.integers(1, 1024), min_size=num_nodes, max_size=num_nodes),
        st.lists(st.integers(0, num_nodes - 1), min_size=1, max_size=16),
        st.none() | st.integers(1, 4096),
    )
)
"""(GiB of each memory node, node of each rank, GiB that a control group allows or None)."""


@pytest.mark.parametrize(
    ("text", "lists"),
    [
        ("0-3|4-7", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("5,2-4", [[2, 3, 4, 5]]),
        (" 0 - 1 | 2 ", [[0, 1], [2]]),
        ("3,3,3", [[3]]),
    ],
)
def test_lists_are_read_as_vllm_reads_them(text, lists):
    assert parse_core_lists(text, set(range(8))) == lists


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "expected cores"),
        ("0-1|", "got '' in '0-1|'"),
        ("|", "expected cores"),
        ("a", "got 'a'"),
        ("0;1", "got '0;1'"),
        ("3-1", "got '3-1'"),
        ("-1", "got '-1'"),
        ("0,,1", "got '' in"),
        ("auto|auto", "got 'auto'"),
        ("0-6:2", "got '0-6:2'"),
        ("0-99", "may run on 0-7"),
        ("8", "names cores 8"),
        ("0-99999999999999", "may run on 0-7"),
    ],
)
def test_anything_else_is_refused_with_the_variable_named(text, word):
    with pytest.raises(ConfigError, match="VLLM_CPU_OMP_THREADS_BIND") as refusal:
        parse_core_lists(text, set(range(8)))
    assert word in str(refusal.value)


@given(st.sets(st.integers(0, 200), min_size=1))
def test_ranges_say_the_same_cores(cores):
    assert parse_core_lists(ranges_text(cores), cores) == [sorted(cores)]


@pytest.mark.parametrize(
    ("num_cores", "num_ranks", "num_reserved", "shares"),
    [
        (4, 2, 0, [[0, 1], [2, 3]]),
        (5, 2, 0, [[0, 1, 2], [3, 4]]),
        (2, 3, 0, [[0], [1], [0]]),
        (6, 2, 1, [[0, 1], [3, 4]]),
        (5, 2, 2, [[0], [3, 4]]),
    ],
)
def test_ranks_share_the_cores(num_cores, num_ranks, num_reserved, shares):
    assert divide(range(num_cores), num_ranks, num_reserved) == shares


@given(st.integers(1, 300), st.integers(1, 40))
def test_division_leaves_no_core_and_no_rank_out(num_cores, num_ranks):
    shares = divide(range(num_cores), num_ranks)
    assert len(shares) == num_ranks and all(shares)
    assert set().union(*shares) == set(range(num_cores))
    if num_cores >= num_ranks:
        assert sum(map(len, shares)) == num_cores
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("lists", "job_size", "command", "cores"),
    [
        ([[0, 1, 2, 3]], 2, range(2), [[0, 1], [2, 3]]),
        ([[0], [1]], 2, range(2), [[0], [1]]),
        ([[0], [1], [2]], 2, range(2), [[0], [1]]),
        ([[0, 1]], 4, range(2, 4), [None, None, [0], [1]]),
        ([[0], [1]], 4, range(2, 4), [None, None, [0], [1]]),
        ([[0], [1], [2], [3]], 4, range(2, 4), [[0], [1], [2], [3]]),
        ([[0, 1]], 1, range(1), [[0, 1]]),
    ],
)
def test_lists_go_to_ranks_of_the_command_or_of_the_job(lists, job_size, command, cores):
    assert spread_lists(lists, job_size, command) == cores


def test_too_few_lists_are_refused():
    with pytest.raises(ConfigError, match=r"cores for 3 ranks, .* got 2 lists"):
        spread_lists([[0], [1]], 3, range(3))


@given(HOSTS)
def test_ranks_never_fill_more_than_their_nodes_and_the_limit(host):
    node_gib, nodes, limit = host
    filled = defaultdict(float)
    for rank, node in enumerate(nodes):
        # vLLM counts a node as no larger than the control group's limit.
        counted = min(node_gib[node], limit or node_gib[node])
        filled[node] += counted * memory_share(nodes, rank, counted * GIB, limit and limit * GIB)
    assert all(filled[node] <= node_gib[node] * (1 + 1e-9) for node in filled)
    assert limit is None or sum(filled.values()) <= limit * (1 + 1e-9)


@given(HOSTS)
def test_without_a_limit_the_ranks_of_a_node_fill_it(host):
    _, nodes, _ = host
    for node in set(nodes):
        ranks = [rank for rank, of_rank in enumerate(nodes) if of_rank == node]
        assert sum(memory_share(nodes, rank, GIB, None) for rank in ranks) == pytest.approx(1)


def test_rank_on_an_unknown_node_counts_as_a_neighbour():
    assert memory_share([0, None, 1], 0, GIB, None) == 0.5
