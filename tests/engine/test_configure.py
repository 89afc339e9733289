# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Configurations that can't work are refused by vLLM's own config, before anything is spawned."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import vllm
from vllm.engine.arg_utils import EngineArgs

from vllm_dwdp.engine.compat import CONTRACT, UnsupportedVllm, check_vllm_version

MODEL = str(Path(__file__).resolve().parents[2] / "examples" / "demo_model")


def create(monkeypatch, environment=(), **options):
    for name, value in dict(environment).items():
        monkeypatch.setenv(name, value)
    dwdp = options.pop("dwdp", {})
    return EngineArgs(
        model=MODEL,
        distributed_executor_backend=options.pop("backend", "dwdp"),
        additional_config={"dwdp": dwdp},
        **{"data_parallel_size": 2, "max_model_len": 256, **options},
    ).create_engine_config()


@pytest.mark.parametrize("backend", ["dwdp", "vllm_dwdp.engine.executor.DwdpExecutor"])
def test_both_names_make_independent_engines(monkeypatch, backend):
    config = create(monkeypatch, backend=backend)
    assert not config.model_config.is_moe
    assert config.additional_config["dwdp_resolved"]["job_size"] == 2


def test_external_rank_becomes_a_job_of_one(monkeypatch):
    config = create(monkeypatch, data_parallel_rank=1)
    assert config.parallel_config.data_parallel_size == 1
    assert config.additional_config["dwdp_resolved"]["job_rank"] == 1


def test_other_backends_are_left_alone(monkeypatch):
    config = create(monkeypatch, backend="mp", data_parallel_size=1)
    assert config.model_config.is_moe
    assert "dwdp_resolved" not in config.additional_config


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"enable_expert_parallel": True}, "enable-expert-parallel"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({"pipeline_parallel_size": 2}, "(?i)pipeline"),
        ({"enable_lora": True}, "LoRA"),
        ({"load_format": "sharded_state"}, "load format"),
        ({"load_format": "tensorizer"}, "load format"),
        ({"load_format": "runai_streamer"}, "load format"),
        ({"dwdp": {"dwdp_size": 3}}, "must divide"),
        ({"dwdp": {"dwdp_sise": 2}}, "valid options"),
        ({"dwdp": {"fetch": "prefetch"}}, "fetch"),
        ({"dwdp": {"num_experts_per_worker": 3}}, "num_experts_per_worker"),
        ({"data_parallel_size": 17}, "dwdp_size must be between"),
        ({"data_parallel_size_local": 1, "data_parallel_address": "127.0.0.1"}, "one host"),
        ({"data_parallel_rank": 0, "data_parallel_address": "192.0.2.1"}, "one host"),
        ({"environment": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}}, "MULTIPROCESSING"),
        ({"cpu_offload_gb": 1}, "offload"),
        ({"enable_sleep_mode": True}, "(?i)sleep"),
        ({"enable_eplb": True, "enable_expert_parallel": True}, "(?i)eplb|expert"),
        ({"enable_elastic_ep": True}, "(?i)elastic"),
        ({"enable_dbo": True}, "(?i)dual-batch|dbo"),
        ({"decode_context_parallel_size": 2}, "dcp_size"),
        ({"dwdp": {"timeout_s": 0}}, "timeout_s"),
        ({"dwdp": {"rendezvous": "nowhere"}}, "rendezvous"),
        ({"dwdp": {"dwdp_size": "2"}}, "dwdp_size"),
        ({"dwdp": {"num_experts_per_worker": 17}}, "num_experts_per_worker"),
        ({"dwdp": []}, "dwdp"),
    ],
)
def test_configuration_that_cannot_work_is_refused(monkeypatch, options, word):
    with pytest.raises(Exception, match=word):
        create(monkeypatch, **options)


def test_unsupported_vllm_is_refused_with_the_range(monkeypatch):
    monkeypatch.setattr("vllm_dwdp.engine.compat.installed_version", lambda: "0.29.1")
    with pytest.raises(UnsupportedVllm, match=r"0\.30 to 0\.33, this is 0\.29\.1"):
        check_vllm_version()


def test_every_seam_exists_in_the_installed_vllm():
    package = Path(vllm.__file__).parent
    for seam in CONTRACT:
        body = ast.parse((package / seam.file).read_text()).body
        for part in seam.name.split("."):
            found = [n for n in body if getattr(n, "name", None) == part]
            assert found, f"{seam.file} has no {seam.name}"
            body = getattr(found[0], "body", [])


def test_vllm_works_beside_a_broken_plugin(tmp_path):
    """The engine room is broken in every process; 'vllm --version' works."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "for name in ('vllm_dwdp.engine', 'vllm_dwdp._core'):\n"
        "    sys.modules[name] = None\n"
    )
    done = subprocess.run(
        [str(Path(sys.executable).with_name("vllm")), "--version"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "0." in done.stdout
