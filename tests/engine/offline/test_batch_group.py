# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which rows of a batch get an error, over a stand-in for the LLM; and the parts of the output.

test_batch_ray_data.py runs the job itself.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vllm_dwdp import PromptsFailed, RankDied
from vllm_dwdp.offline.errors import NoRankLeft

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "batch_ray_data"
NUM_RANKS = 2


class StandIn:
    """An LLM that echoes prompts. It refuses "refused"; two "deadly" ones end all of its ranks."""

    def __init__(self, calls):
        self._calls = calls
        self._num_alive = NUM_RANKS

    def generate(self, prompts, params, use_tqdm):
        self._calls.append(prompts)
        if "refused" in prompts:
            raise ValueError("this prompt is refused")
        num_deadly = prompts.count("deadly")
        outputs = [None if prompt == "deadly" else output(prompt) for prompt in prompts]
        if num_deadly:
            self._num_alive = 0
        if num_deadly > 1:
            raise NoRankLeft("no rank is left", [None] * len(prompts))
        if num_deadly:
            raise PromptsFailed("it ended its rank twice", outputs)
        return outputs

    def dwdp_stats(self):
        return [{}] * self._num_alive

    def shutdown(self):
        assert self._num_alive < NUM_RANKS, "a whole group goes on"


def output(prompt):
    return SimpleNamespace(outputs=[SimpleNamespace(text=f"<{prompt}>", token_ids=(1, 2))])


@pytest.fixture
def example(monkeypatch):
    """The modules of the example: importable, and forgotten after the test."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield
    for name in ("group", "parts"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(example, monkeypatch):
    """Runs prompts as one batch of a group; returns texts, errors, and the group's calls."""
    import group

    calls, starts = [], []

    def started(options):
        starts.append(options)
        return StandIn(calls)

    monkeypatch.setattr(group, "_started", started)

    def run(*prompts):
        made = group.Group({"data_parallel_size": NUM_RANKS}, max_tokens=4)
        lines = [json.dumps({"id": n, "prompt": prompt}) for n, prompt in enumerate(prompts)]
        rows = [json.loads(line) for line in made({group.LINE: lines})[group.LINE]]
        assert [row["id"] for row in rows] == list(range(len(prompts)))
        errors = {row["id"]: row["error"] for row in rows if row["error"] is not None}
        return [row["text"] for row in rows], errors, SimpleNamespace(calls=calls, starts=starts)

    return run


def test_batch_without_a_bad_row_is_one_call(run):
    texts, errors, group = run("a", "b", "c")
    assert texts == ["<a>", "<b>", "<c>"] and errors == {}
    assert group.calls == [("a", "b", "c")] and len(group.starts) == 1


def test_refused_row_is_found_by_halves(run):
    texts, errors, group = run("a", "b", "refused", "d", "e", "f", "g", "h")
    assert texts == ["<a>", "<b>", None, "<d>", "<e>", "<f>", "<g>", "<h>"]
    assert errors == {2: "ValueError: this prompt is refused"}
    assert group.calls[-1] == ("e", "f", "g", "h") and len(group.calls) == 7


def test_row_that_ends_its_rank_twice_costs_no_second_call(run):
    texts, errors, group = run("a", "deadly", "c")
    assert texts == ["<a>", None, "<c>"]
    assert errors == {1: "PromptsFailed: it ended its rank twice"}
    assert len(group.calls) == 1


def test_rows_that_end_all_ranks_together_are_told_apart_by_new_ranks(run):
    texts, errors, group = run("a", "deadly", "deadly", "d")
    assert texts == ["<a>", None, None, "<d>"] and errors.keys() == {1, 2}
    assert len(group.starts) == 3, "again after each call that ended ranks, if another follows"


def test_group_that_can_not_start_again_is_no_rows_fault(run, monkeypatch):
    import group

    def started(options):
        monkeypatch.setattr(group, "_started", fails)
        return StandIn([])

    def fails(options):
        raise RankDied("dwdp rank 0 could not start")

    monkeypatch.setattr(group, "_started", started)
    with pytest.raises(RankDied, match="could not start"):
        run("a", "deadly", "deadly", "d")


def test_parts_are_joined_by_id_each_row_once_and_half_a_part_is_none(example, tmp_path):
    from parts import Parts

    made = Parts(tmp_path, {"model": "a"})
    row = {"text": "x", "error": None}
    for ids in ((10, "b"), (2, "a", 10)):
        made.add(json.dumps({"id": row_id, **row}) for row_id in ids)
    (tmp_path / "parts" / "0.unfinished").write_text('{"id": 3, "te')
    again = Parts(tmp_path, {"model": "a"})
    assert again.ids() == {2, 10, "a", "b"}
    file, num_failed = again.join()
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [2, 10, "a", "b"]
    assert num_failed == 0


def test_outputs_of_another_job_are_not_mixed_in(example, tmp_path):
    from parts import Parts

    Parts(tmp_path, {"model": "a"})
    with pytest.raises(ValueError, match="has outputs of another job"):
        Parts(tmp_path, {"model": "b"})
