# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp bench serve` with real servers and clients on the demo model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo_model"
SMALL = ("--rounds", "2", "--num-prompts", "6", "--input-len", "64", "--output-len", "4")
EAGER = ("--", "--enforce-eager")
FAILED, BAD_INPUT = 3, 2


def bench(*options, model=DEMO, timeout=500):
    command = [sys.executable, "-m", "vllm_dwdp.cli", "bench", "serve", str(model), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.whole
def test_arms_are_measured_in_turns_and_one_that_does_not_start_is_told(tmp_path):
    results, figure = tmp_path / "results.json", tmp_path / "figure.png"
    arms = [part for arm in ("dwdp", "replicas", "ep") for part in ("--arm", arm)]
    files = ("--results", str(results), "--figure", str(figure), "--logs", str(tmp_path / "logs"))
    ran = bench(*arms, *SMALL, "--disturb", *files, *EAGER)
    assert ran.returncode == 0, ran.stderr

    found = json.loads(results.read_text())
    assert set(found["variants"]) == {"undisturbed", "disturbed"}
    for by_arm in found["variants"].values():
        assert set(by_arm) == {"dwdp", "replicas"}
        for one in by_arm.values():
            assert len(one["rounds"]) == 2
            assert 0 < one["tokens_per_s"]["low"] <= one["tokens_per_s"]["high"]
            assert 0 < one["ttft_s"]["median"] < 60
    assert found["variants"]["disturbed"]["dwdp"]["taken"] > 0.1
    assert found["variants"]["undisturbed"]["dwdp"]["taken"] == 0
    expert_bytes = found["memory_bytes"]["dwdp"]["shared_experts"]
    assert expert_bytes == pytest.approx(demo_expert_bytes(), rel=0.05)
    assert found["memory_bytes"]["replicas"]["shared_experts"] == 0
    # vLLM 0.32 can't run expert parallelism on CPUs
    assert "NotImplementedError" in found["absent"]["ep"]
    assert "ep can't be measured: " in ran.stdout

    order = [line.split()[2] for line in ran.stderr.splitlines() if line.startswith("round ")]
    assert order == ["dwdp"] * 2 + ["replicas"] * 4 + ["dwdp"] * 2, (
        "every round begins with another"
    )
    for command in (*found["commands"]["dwdp"], found["client_command"]):
        assert command in ran.stderr
    assert figure.stat().st_size > 1000
    assert {log.name for log in (tmp_path / "logs").iterdir()} >= {"dwdp-0.log", "replicas-1.log"}


@pytest.mark.whole
def test_an_arm_can_start_whenever_it_is_its_turn():
    ran = bench("--arm", "one", "--in-turns", *SMALL, "--json", *EAGER)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found["variants"]["undisturbed"]["one"]["rounds"]) == 2
    assert found["variants"]["undisturbed"]["one"]["dwdp_over"] is None


@pytest.mark.whole
def test_an_arm_that_gives_no_answers_is_told():
    ran = bench("--arm", "one", *SMALL, *EAGER, "--max-model-len", "16")
    assert ran.returncode == FAILED
    assert "the arm 'one' can't be measured: expected answers to 12 requests, got" in ran.stderr
    assert "--logs keeps" in ran.stderr


def test_a_model_that_does_not_exist_is_told(tmp_path):
    ran = bench("--arm", "dwdp", *SMALL, model=tmp_path / "none")
    assert ran.returncode == FAILED
    assert "error: the arm 'dwdp' can't be measured: the server ended with 1: " in ran.stderr


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--arm", "pp"), BAD_INPUT, "expected arms out of dwdp, tp, replicas, ep, one on CPUs"),
        (("--dwdp-size", "999"), FAILED, "expected a core for each rank, 999 of them"),
        (("--results", "/nowhere/r.json"), BAD_INPUT, "expected a folder to write /nowhere/r.json"),
        (("--rounds", "0"), BAD_INPUT, "--rounds"),
    ],
)
def test_what_can_not_be_measured_ends_with_a_sentence(options, code, sentence):
    ran = bench(*options)
    assert ran.returncode == code
    assert sentence in " ".join(ran.stderr.split())


def demo_expert_bytes():
    config = json.loads((DEMO / "config.json").read_text())
    per_expert = 3 * 2 * config["hidden_size"] * config["moe_intermediate_size"]
    return config["num_hidden_layers"] * config["num_experts"] * per_expert
