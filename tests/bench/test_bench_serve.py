# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp bench serve` with real servers and clients on the demo model."""

import json
import os
import signal
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
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.send_signal(signal.SIGTERM)  # so that it ends its servers
            process.communicate()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@pytest.mark.whole
def test_arms_take_turns_and_one_that_fails_is_reported(tmp_path):
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
    assert found["variants"]["disturbed"]["dwdp"]["core_share"] > 0.01
    assert found["variants"]["undisturbed"]["dwdp"]["core_share"] is None
    expert_bytes = found["memory_bytes"]["dwdp"]["shared_experts"]
    assert expert_bytes == pytest.approx(demo_expert_bytes(), rel=0.05)
    assert found["memory_bytes"]["replicas"]["shared_experts"] == 0
    # vLLM 0.32 can't run expert parallelism on CPUs
    assert "NotImplementedError" in found["failures"]["ep"]
    assert "ep failed: " in ran.stdout

    assert found["memory_bytes"]["dwdp"]["host"] > expert_bytes
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
def test_an_arm_that_gives_no_answers_has_failed():
    ran = bench("--arm", "one", *SMALL, *EAGER, "--max-model-len", "16")
    assert ran.returncode == FAILED
    assert "the arm 'one' failed: expected answers to 12 requests, got" in ran.stderr


def test_a_model_that_does_not_exist(tmp_path):
    ran = bench("--arm", "dwdp", *SMALL, model=tmp_path / "none")
    assert ran.returncode == FAILED
    assert "error: the arm 'dwdp' failed: the server ended with 1: " in ran.stderr


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--arm", "pp"), BAD_INPUT, "expected arms out of dwdp, tp, replicas, ep, one on CPUs"),
        (("--dwdp-size", "999"), FAILED, "expected a core for each rank, 999 of them"),
        (("--results", "/nowhere/r.json"), BAD_INPUT, "expected a file that can be written"),
        (("--rounds", "0"), BAD_INPUT, "--rounds"),
        (("--figure", "figure.doc"), BAD_INPUT, "expected a figure's file to end with one of"),
        (("--logs", "/dev/null/logs"), BAD_INPUT, "expected a folder for logs"),
        (("--", "--port", "80"), BAD_INPUT, "expected no --port behind '--'"),
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
