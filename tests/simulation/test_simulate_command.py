# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The command `vllm-dwdp simulate`, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_scenario_file import GOOD, write

SCENARIOS = Path(__file__).resolve().parents[2] / "configs/scenarios"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "vllm_dwdp.cli", "simulate", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_json_has_every_rank_and_the_same_figures_each_time():
    path = SCENARIOS / "unequal_lengths.yaml"
    first, second = command(path, "--json"), command(path, "--json")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    dwdp, dep = json.loads(first.stdout)
    assert (dwdp["name"], dep["name"], dep["over_dep"]) == ("dwdp", "dep", 1.0)
    assert 1.02 < dwdp["over_dep"] < 1.2
    ranks = dwdp["outcome"]["ranks"]
    assert len(ranks) == 4
    assert sum(rank["tokens"] for rank in ranks) == dwdp["outcome"]["tokens"]


def test_another_seed_gives_other_figures():
    path = SCENARIOS / "unequal_lengths.yaml"
    first, second = command(path, "--json"), command(path, "--json", "--seed", "9")
    assert json.loads(second.stdout)[0]["seed"] == 9
    assert json.loads(first.stdout)[0]["outcome"] != json.loads(second.stdout)[0]["outcome"]


def test_tables_name_each_variant_and_the_rivals_of_pulls(tmp_path):
    variants = {"whole parts": {"copies": {"pulls": "whole"}}, "barriers": {"strategy": "dep"}}
    found = command(write(tmp_path, variants=variants))
    assert found.returncode == 0, found.stderr
    assert "…" not in found.stdout, "a number was cut off at 80 columns"
    for text in ("whole parts", "barriers", "tokens/s", "rivals"):
        assert text in found.stdout


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({**GOOD, "gpus": 3}, "gpus is no key of a scenario"),
        ({**GOOD, "workload": {"trace": "gone.csv"}}, "Can't read the trace"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(section, sentence, tmp_path):
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(section))
    found = command(path)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("error: ")
    assert sentence in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["unequal_lengths", "slow_rank", "drifting_ranks"])
def test_the_page_shows_what_the_command_says(name):
    page = (SCENARIOS.parents[1] / "docs/simulation.md").read_text()
    for one in json.loads(command(SCENARIOS / f"{name}.yaml", "--json").stdout):
        assert f"| {one['name']} | {one['outcome']['tokens_per_s']:,.0f} |" in page
