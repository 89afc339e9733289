# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Scenario and trace files: what they may say, and the sentence for each mistake."""

from pathlib import Path

import pytest
import yaml

from vllm_dwdp.simulation.errors import ScenarioError
from vllm_dwdp.simulation.scenario_file import read_scenarios
from vllm_dwdp.simulation.simulate import simulate
from vllm_dwdp.simulation.trace import read_trace

GOOD = {
    "ranks": 4,
    "max_num_batched_tokens": 100,
    "workload": {
        "num_requests": 8,
        "lengths": {"kind": "constant", "tokens": 100},
        "arrivals": {"kind": "at_once"},
    },
    "costs": {
        "num_layers": 2,
        "expert_gb_per_layer": 1.0,
        "link_gb_per_s": 100,
        "attention_ms_per_1000_tokens": 1.0,
        "experts_ms_per_1000_tokens": 1.0,
    },
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


def changed(section: str, **changes: object) -> dict[str, object]:
    return {section: {**GOOD[section], **changes}}


def test_without_variants_dwdp_and_expert_parallelism_are_compared(tmp_path):
    assert [variant.name for variant in read_scenarios(write(tmp_path))] == ["dwdp", "dep"]


def test_a_variant_changes_single_keys_of_a_section(tmp_path):
    path = write(tmp_path, variants={"faster": {"costs": {"link_gb_per_s": 200}}})
    (variant,) = read_scenarios(path)
    assert variant.scenario.costs.link_gb_per_s == 200
    assert variant.scenario.costs.num_layers == 2


def test_costs_are_converted_to_seconds_and_bytes(tmp_path):
    (variant, _) = read_scenarios(write(tmp_path, dwdp_size=2))
    layer = variant.scenario.step_costs()
    assert layer.peer_bytes == pytest.approx(0.5e9)
    assert layer.ingress_bytes_per_s == layer.egress_bytes_per_s == pytest.approx(100e9)
    assert layer.experts_s(500) == pytest.approx(0.5e-3)


NAMED = {"model": "deepseek-r1", "hardware": "gb200"}


def test_a_model_and_hardware_take_the_place_of_numbers(tmp_path):
    dwdp, dep = (one.scenario.step_costs() for one in read_scenarios(write(tmp_path, costs=NAMED)))
    assert (dwdp.num_layers, dwdp.expert_ranks, dep.expert_ranks) == (58, 1, 4)
    assert dwdp.peer_bytes == pytest.approx(64 * 3 * 7168 * 2048 * 0.5625)
    assert dwdp.ingress_bytes_per_s == pytest.approx(0.89 * 900e9)


def test_another_format_of_experts_has_other_bytes(tmp_path):
    (other, _) = read_scenarios(write(tmp_path, costs={**NAMED, "expert_format": "bf16"}))
    assert other.scenario.step_costs().peer_bytes == pytest.approx(64 * 3 * 7168 * 2048 * 2)


@pytest.mark.parametrize("name", ["72_gpus", "slow_rank", "drifting_ranks"])
def test_scenarios_of_many_gpus_name_their_model(name):
    path = Path(__file__).resolve().parents[2] / f"configs/scenarios/{name}.yaml"
    for variant in read_scenarios(path):
        assert variant.scenario.step_costs().model.name == "deepseek-r1"


def test_a_given_seed_takes_the_place_of_the_files_seed(tmp_path):
    path = write(tmp_path, seed=5, variants={"one": {"seed": 6}, "two": {"ranks": 2}})
    assert [v.scenario.seed for v in read_scenarios(path)] == [6, 5]
    assert [v.scenario.seed for v in read_scenarios(path, seed=7)] == [7, 7]


BAD = [
    ({"rank": 4}, "rank is no key of a scenario; valid keys there are ['workload', 'costs',"),
    (changed("costs", gpus=1), "costs.gpus is no key of a scenario; valid keys there are ['num_l"),
    (
        changed("workload", lengths={"kind": "uniform", "tokens": 9, "share": 1}),
        "valid keys there are ['kind', 'tokens', 'least_share']",
    ),
    (changed("workload", lengths={"kind": "normal"}), "workload.lengths: "),
    ({"ranks": 0}, "ranks: Input should be greater than or equal to 1, got 0."),
    ({"ranks": "4"}, "ranks: Input should be a valid integer, got '4'."),
    ({"ranks": 6, "dwdp_size": 4}, "dwdp_size must divide ranks, got 4 and 6"),
    ({"dep_size": 3}, "dep_size must divide ranks, got 3 and 4"),
    ({"copies": {"pulls": "half"}}, "copies.pulls: Input should be 'whole', 'slices' or 'spread'"),
    ({"speeds": {"slow": {9: 0.5}}}, "speeds.slow names [9], but ranks end at 3"),
    ({"speeds": {"slow": {1: 0.0}}}, "speeds: give the speed, above 0"),
    ({"costs": None}, "costs"),
    (changed("costs", link_gb_per_s=float("inf")), "costs.link_gb_per_s: "),
    (changed("workload", trace="a.csv"), "give either num_requests, lengths and arrivals, or only"),
    ({"costs": {"model": "deepseek-r1"}}, "costs.hardware: Field required, got {'model': 'd"),
    ({"costs": 3}, "costs: Input should be"),
    (
        {"costs": {**NAMED, "link_gb_per_s": 900}},
        "costs.link_gb_per_s is no key of a scenario; valid keys there are ['model', 'hardware',",
    ),
    ({"costs": {**NAMED, "model": "gpt-9"}}, "costs: expected a folder with config.json"),
    ({"costs": {**NAMED, "hardware": "tpu"}}, "costs: expected hardware out of a100"),
    ({"costs": {**NAMED, "expert_format": "fp3"}}, "costs: expected a format of weights"),
    ({"costs": NAMED, "ranks": 73}, "costs: expected groups of at most 72 ranks"),
    ({"workload": {}}, "give either num_requests, lengths and arrivals, or only trace"),
    ({"workload": {"trace": "gone.jsonl"}}, "Can't read the trace "),
    ({"workload": {"trace": "a.txt"}}, "must end in .jsonl or .csv, got "),
    ({"variants": {}}, "variants must be a mapping of keys to values, got {}."),
    ({"variants": {"a": 3}}, "a must be a mapping of keys to values, got 3."),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD)
def test_a_mistake_in_a_scenario_is_one_sentence(changes, sentence, tmp_path):
    with pytest.raises(ScenarioError) as found:
        for variant in read_scenarios(write(tmp_path, **changes)):
            simulate(variant.scenario, variant.requests)
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)
    assert str(found.value).endswith(".")


@pytest.mark.parametrize("text", ["[1, 2]", "", "a: [", "a: 1\n b: 2", "\x00"])
def test_a_file_that_is_no_mapping_of_yaml_is_refused(text, tmp_path):
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=r"scenario\.yaml"):
        read_scenarios(path)


def test_a_scenario_that_is_gone_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="Can't read the scenario"):
        read_scenarios(tmp_path / "gone.yaml")


def test_a_trace_is_served_from_its_first_prompt_on(tmp_path):
    lines = [
        '{"arrival_s": 103.5, "prompt_tokens": 20}',
        "",
        '{"arrival_s": 100, "prompt_tokens": 7}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert [tuple(r) for r in read_trace(tmp_path / "a.jsonl")] == [(0, 0.0, 7), (1, 3.5, 20)]


def test_a_csv_trace_says_the_same_as_a_jsonl_trace(tmp_path):
    (tmp_path / "a.csv").write_text("prompt_tokens,arrival_s,user\n20,103.5,x\n7,100,y\n")
    assert [tuple(r) for r in read_trace(tmp_path / "a.csv")] == [(0, 0.0, 7), (1, 3.5, 20)]


def test_a_trace_is_found_beside_its_scenario(tmp_path):
    (tmp_path / "a.csv").write_text("arrival_s,prompt_tokens\n0,100\n1,50\n")
    variants = read_scenarios(write(tmp_path, workload={"trace": "a.csv"}))
    assert [request.num_tokens for request in variants[0].requests] == [100, 50]


BAD_TRACES = [
    ("a.jsonl", '{"arrival_s": 1, "prompt_tokens": 5}\n{"arrival_s": 1}', "Prompt 2 of the trace"),
    ("a.jsonl", '{"arrival_s": 1, "prompt_tokens": 0}', "Prompt 1 of the trace"),
    ("a.jsonl", '{"arrival_s": "soon", "prompt_tokens": 1}', "Prompt 1 of the trace"),
    ("a.jsonl", '{"arrival_s": NaN, "prompt_tokens": 1}', "Prompt 1 of the trace"),
    ("a.jsonl", "[1, 2]", "Prompt 1 of the trace"),
    ("a.jsonl", "not json", "Prompt 1 of the trace"),
    ("a.csv", "arrival_s,prompt_tokens\n1,2.5\n", "Prompt 1 of the trace"),
    ("a.csv", "arrival_s,prompt_tokens\n1\n", "Prompt 1 of the trace"),
    ("a.csv", "time,tokens\n1,2\n", "Prompt 1 of the trace"),
    ("a.csv", "", "has no prompts"),
]


@pytest.mark.parametrize(("name", "text", "sentence"), BAD_TRACES)
def test_a_mistake_in_a_trace_is_one_sentence_with_its_place(name, text, sentence, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ScenarioError) as found:
        read_trace(tmp_path / name)
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)


def test_a_trace_of_bytes_that_are_no_text_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match="Prompt 1 of the trace"):
        read_trace(tmp_path / "a.jsonl")
