# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Configurations that can't work are refused by vLLM's own config, before anything is spawned."""

import inspect
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli import serve
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.model_executor.model_loader import LoadFormats, weight_utils
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from vllm_dwdp.config import DwdpConfig
from vllm_dwdp.device import MEMORY_OF_DEVICE, GpuMemory
from vllm_dwdp.engine.compat import UnsupportedVllm, check_vllm_version
from vllm_dwdp.engine.setup import format_checks, last_words, model_checks
from vllm_dwdp.engine.setup.settings import Settings, endpoint
from vllm_dwdp.engine.vllm_source import missing
from vllm_dwdp.engine.worker.executor import DwdpExecutor
from vllm_dwdp.memory import limits

ROOT = Path(__file__).resolve().parents[3]
MODEL = str(ROOT / "examples" / "demo_model")
LIMITS = ROOT / "docs" / "limits.md"
DEMO_LAYERS = 6


DENSE = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_experts": None}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
MOE_MTP = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "num_nextn_predict_layers": 1,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
DENSE_MTP = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "model_type": "ernie4_5_moe",
    "num_nextn_predict_layers": 1,
    "moe_num_experts": 16,
    "moe_k": 4,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 5,
    "moe_layer_interval": 1,
}
OFFLINE_RANK = {"VLLM_DP_RANK": "0", "VLLM_DP_RANK_LOCAL": "0", "VLLM_DP_SIZE": "2"}
OFFLINE_RANK_ELSEWHERE = {
    **OFFLINE_RANK,
    "VLLM_DP_MASTER_IP": "192.0.2.1",
    "VLLM_DP_MASTER_PORT": "7",
}


def create(monkeypatch, environment=(), **options):
    for name, value in dict(environment).items():
        monkeypatch.setenv(name, value)
    dwdp = options.pop("dwdp", {})
    return EngineArgs(
        model=options.pop("model", MODEL),
        distributed_executor_backend=options.pop("backend", "dwdp"),
        additional_config={"dwdp": dwdp},
        **{"data_parallel_size": 2, "max_model_len": 256, **options},
    ).create_engine_config()


@pytest.mark.parametrize("backend", ["dwdp", "vllm_dwdp.engine.worker.executor.DwdpExecutor"])
def test_both_names_make_independent_engines(monkeypatch, backend):
    config = create(monkeypatch, backend=backend)
    assert not config.model_config.is_moe
    assert config.additional_config["dwdp_resolved"]["job_size"] == 2


def test_external_rank_becomes_a_job_of_one(monkeypatch):
    config = create(monkeypatch, data_parallel_rank=1)
    assert config.parallel_config.data_parallel_size == 1
    assert config.additional_config["dwdp_resolved"]["job_rank"] == 1


class EnginesStarted(Exception):
    """Raised where vLLM has accepted the options and would start engines."""


@pytest.fixture
def start_headless(monkeypatch):
    """Runs `vllm serve --headless` up to the start of its engines."""

    def refuse(*args, **kwargs):
        raise EnginesStarted

    def start(*options):
        parser = make_arg_parser(FlexibleArgumentParser())
        arguments = ["--model", MODEL, "--distributed-executor-backend", "dwdp", "--headless"]
        serve.ServeSubcommand.cmd(parser.parse_args([*arguments, "--max-model-len=256", *options]))

    monkeypatch.setattr(serve, "CoreEngineProcManager", refuse)
    return start


def test_headless_rank_with_a_front_end_of_its_own_is_refused(start_headless):
    with pytest.raises(Exception, match=r"drop --headless, or .* --data-parallel-start-rank 1\."):
        start_headless("--data-parallel-size=2", "--data-parallel-rank=1")


def test_headless_rank_that_joins_a_front_end_is_started(start_headless):
    options = ("--data-parallel-size-local=1", "--data-parallel-start-rank=1")
    with pytest.raises(EnginesStarted):
        start_headless("--data-parallel-size=2", *options)


@pytest.mark.parametrize(
    ("options", "one_host", "expected"),
    [
        ({"data_parallel_rank": 1}, True, "127.0.0.1:29551"),
        ({"data_parallel_rank": 1}, False, "192.0.2.1:29551"),
        ({"data_parallel_size_local": 1}, False, "192.0.2.1:29551"),
        ({"data_parallel_size_local": 1, "data_parallel_rpc_port": 7000}, False, "192.0.2.1:7001"),
        ({"dwdp": {"rendezvous": "198.51.100.7:80"}}, False, "198.51.100.7:80"),
        ({"environment": OFFLINE_RANK_ELSEWHERE, "data_parallel_size": 1}, False, "192.0.2.1:7"),
    ],
)
def test_ranks_of_several_commands_meet_where_all_were_told(
    monkeypatch, options, one_host, expected
):
    """With GPU memory a group may span hosts, so any address is valid."""
    monkeypatch.setitem(MEMORY_OF_DEVICE, "cpu", GpuMemory)
    monkeypatch.setenv("VLLM_DWDP_SECRET", "a secret of these tests")
    config = create(monkeypatch, **{"data_parallel_address": "192.0.2.1", **options})
    settings = Settings.load(config)
    assert str(endpoint(config, settings, one_host=one_host)) == expected


def test_store_that_other_hosts_reach_needs_a_secret_unless_the_user_says_so(monkeypatch):
    monkeypatch.setitem(MEMORY_OF_DEVICE, "cpu", GpuMemory)
    elsewhere = {"data_parallel_address": "192.0.2.1", "data_parallel_rank": 1}
    unprotected = r"store at 192\.0\.2\.1 .* this rank has no secret; give .* VLLM_DWDP_SECRET_FILE"
    with pytest.raises(Exception, match=unprotected):
        create(monkeypatch, **elsewhere)
    with pytest.raises(Exception, match=unprotected):
        create(monkeypatch, dwdp={"rendezvous": "192.0.2.1:80"})
    create(monkeypatch, **elsewhere, dwdp={"require_secret": False})
    create(monkeypatch, **elsewhere | {"data_parallel_address": "127.0.0.1"})
    monkeypatch.setenv("VLLM_DWDP_SECRET", "too short")
    with pytest.raises(Exception, match="at least 16 bytes from VLLM_DWDP_SECRET, got 9"):
        create(monkeypatch)


@pytest.mark.parametrize("one_host", [True, False])
def test_ranks_of_one_command_meet_on_loopback(monkeypatch, one_host):
    config = create(monkeypatch, data_parallel_address="192.0.2.1")
    port = config.parallel_config.data_parallel_master_port
    expected = f"127.0.0.1:{port}"
    assert str(endpoint(config, Settings.load(config), one_host=one_host)) == expected


@pytest.mark.parametrize("asked", ["auto", "triton"])
def test_the_kernel_is_vllms_choice_or_the_users(monkeypatch, asked):
    assert create(monkeypatch, moe_backend=asked).kernel_config.moe_backend == asked


@pytest.mark.parametrize(
    ("device_ids", "told", "expected"),
    [(None, None, [1]), ([6, 7, 5], None, [5]), (None, 3, None), ([6, 7], 1, [6, 7])],
)
def test_executor_tells_vllm_which_gpu_a_rank_has(monkeypatch, device_ids, told, expected):
    """Rank 5 of 8 has a server of its own, on a host with four GPUs or with `device_ids`.

    told: the rank's number on its host, if the user has set it; vLLM then finds the GPU itself.
    """
    parallel = SimpleNamespace(assigned_physical_gpu_ids=device_ids)
    executor = DwdpExecutor.__new__(DwdpExecutor)
    executor.parallel_config = parallel
    monkeypatch.setattr(current_platform, "device_count", lambda: 4, raising=False)
    monkeypatch.setattr(
        current_platform, "visible_device_id_to_physical_device_id", lambda device: device
    )
    monkeypatch.setattr(MultiprocExecutor, "_init_executor", lambda self: None)
    executor._start_on_gpu(Settings(8, 8, 5, is_spread=True, local_rank=told))
    assert parallel.assigned_physical_gpu_ids == expected


SELECT = "--distributed-executor-backend"


@pytest.mark.parametrize("options", [[SELECT, "dwdp"], [f"{SELECT}=dwdp"]])
def test_command_says_last_which_variable_is_wrong(options):
    """vLLM reads the variable before it parses the command line."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("vllm")), "serve", MODEL, *options],
        env={**os.environ, "VLLM_DP_MASTER_PORT": "tcp://10.0.0.1:80"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode != 0
    assert last.startswith("expected something that vLLM can read in VLLM_DP_MASTER_PORT, got")


def test_other_backends_get_vllms_own_word_on_variables(monkeypatch):
    with pytest.raises(Exception, match="invalid literal") as refusal:
        create(monkeypatch, backend="mp", environment={"VLLM_DP_MASTER_PORT": "tcp://10.0.0.1:80"})
    assert "that vLLM can read" not in str(refusal.value)


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
        ({"dwdp": {"fetch": "push"}}, "fetch must be one of"),
        ({"dwdp": {"num_experts_per_worker": 3}}, "num_experts_per_worker"),
        ({"data_parallel_size": 17}, "dwdp_size must be between"),
        ({"data_parallel_size_local": 1, "data_parallel_address": "192.0.2.1"}, "one host"),
        ({"data_parallel_rank": 0, "data_parallel_address": "192.0.2.1"}, "one host"),
        ({"data_parallel_rank": 0, "data_parallel_backend": "ray"}, "Ray starts all ranks"),
        (
            {"data_parallel_hybrid_lb": True, "data_parallel_size_local": 1}
            | {"data_parallel_backend": "ray"},
            "Ray starts all ranks .* drop --data-parallel-rank, --data-parallel-hybrid-lb",
        ),
        (
            {"environment": OFFLINE_RANK_ELSEWHERE, "data_parallel_size": 1}
            | {"data_parallel_backend": "ray"},
            "Ray starts all ranks .* VLLM_DP_",
        ),
        ({"environment": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}}, "MULTIPROCESSING"),
        (
            {"environment": {"VLLM_ENABLE_STARTUP_PLAN": "1"}},
            "VLLM_ENABLE_STARTUP_PLAN .* unset it",
        ),
        ({"cpu_offload_gb": 1}, "offload"),
        ({"enable_sleep_mode": True}, "(?i)sleep"),
        (
            {"enable_eplb": True, "enable_expert_parallel": True},
            "(?i)load balancing",
        ),
        ({"enable_elastic_ep": True}, "(?i)elastic"),
        ({"enable_fault_tolerance": True, "data_parallel_rank": 0}, "--enable-fault-tolerance"),
        ({"worker_cls": "my.Worker"}, "worker of its own, got --worker-cls my.Worker; "),
        ({"enable_dbo": True}, "(?i)dual-batch|dbo"),
        ({"decode_context_parallel_size": 2}, "dcp_size"),
        ({"nnodes": 2, "master_addr": "127.0.0.1"}, "nnodes"),
        ({"weight_transfer_config": {"backend": "nccl"}}, "weight-transfer-config"),
        ({"environment": OFFLINE_RANK, "data_parallel_size": 1}, "VLLM_DP_MASTER_PORT"),
        (
            {"environment": {**OFFLINE_RANK, "VLLM_DP_RANK": "2"}, "data_parallel_size": 1},
            "ranks from 0 to 1 of a job of 2, this command starts rank 2; correct VLLM_DP_RANK",
        ),
        (
            {"data_parallel_size": 4, "data_parallel_start_rank": 3, "data_parallel_size_local": 2},
            "ranks from 0 to 3 of a job of 4, this command starts ranks 3 to 4; .*start-rank",
        ),
        ({"data_parallel_rank": 0, "data_parallel_rpc_port": 65535}, "the last there is"),
        ({"dwdp": {"timeout_s": 0}}, "timeout_s"),
        ({"dwdp": {"num_slots": 0}}, "num_slots"),
        ({"dwdp": {"num_slots": 7}}, "num_slots must be at most the model's 6 layers, got 7"),
        ({"dwdp": {"copy_threads": 4096}}, "copy_threads must be at most the cores of a rank"),
        ({"dwdp": {"slice_bytes": 1}}, "slice_bytes"),
        ({"dwdp": {"rendezvous": "nowhere"}}, "rendezvous"),
        ({"dwdp": {"dwdp_size": "2"}}, "dwdp_size"),
        ({"dwdp": {"num_experts_per_worker": 17}}, "num_experts_per_worker"),
        ({"dwdp": []}, "must be a JSON object"),
    ],
)
def test_configuration_that_cannot_work_is_refused(monkeypatch, options, word):
    with pytest.raises(Exception, match=word):
        create(monkeypatch, **options)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("VLLM_CPU_OMP_THREADS_BIND", "0|", "expected cores such as"),
        ("VLLM_CPU_OMP_THREADS_BIND", "0-4095", "this process may run on"),
        ("CPU_VISIBLE_MEMORY_NODES", "a", "numbers of memory nodes"),
        ("CPU_VISIBLE_MEMORY_NODES", "4095", "no memory node that this process may use"),
        ("VLLM_CPU_KVCACHE_SPACE", "0", "at least 1"),
        ("VLLM_CPU_KVCACHE_SPACE", "", "a whole number"),
        ("VLLM_RINGBUFFER_WARNING_INTERVAL", "soon", "that vLLM can read"),
        ("VLLM_DP_MASTER_PORT", "tcp://10.0.0.1:80", "set enableServiceLinks to false"),
        ("VLLM_DP_SIZE", "two", "correct or unset it"),
        ("VLLM_CPU_KVCACHE_SPACE", "1.5", "a whole number"),
        ("VLLM_CPU_KVCACHE_SPACE", "1000000", "expected KV caches of 2 ranks that fit"),
        ("VLLM_CPU_NUM_OF_RESERVED_CPU", "-1", "at least 0"),
        ("VLLM_CPU_NUM_OF_RESERVED_CPU", "", "a whole number"),
        ("VLLM_CPU_ATTN_SPLIT_KV", "yes", "0 or 1"),
        ("OMP_PLACES", "cores", "binds all of them to one"),
        ("OMP_PROC_BIND", "true", "binds all of them to one"),
        ("GOMP_CPU_AFFINITY", "0", "binds all of them to one"),
        ("LD_PRELOAD", "libiomp5.so:libgomp.so.1", "one OpenMP library"),
    ],
)
def test_variable_that_ranks_cannot_follow_is_refused_by_name(monkeypatch, name, value, word):
    with pytest.raises(Exception, match=word) as refusal:
        create(monkeypatch, environment={name: value})
    assert name in str(refusal.value)
    assert last_words.left() in str(refusal.value), "vllm serve says it last"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VLLM_CPU_OMP_THREADS_BIND", "AUTO"),
        ("VLLM_CPU_OMP_THREADS_BIND", ""),
        ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        ("VLLM_CPU_SIM_MULTI_NUMA", "1"),
        ("CPU_VISIBLE_MEMORY_NODES", "0"),
        ("OMP_PROC_BIND", "FALSE"),
        ("OMP_NUM_THREADS", "1"),
    ],
)
def test_variable_that_ranks_can_follow_is_accepted(monkeypatch, name, value):
    config = create(monkeypatch, environment={name: value})
    numbers = config.parallel_config.assigned_physical_gpu_ids
    assert numbers == [0, 1], "vLLM would look for two nodes in CPU_VISIBLE_MEMORY_NODES"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, range(2)),
        ({"data_parallel_rank": 1}, range(1, 2)),
        (
            {"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_start_rank": 2},
            range(2, 4),
        ),
        ({"environment": {**OFFLINE_RANK, "VLLM_DP_MASTER_PORT": "7"}}, range(2)),
    ],
    ids=["internal", "external", "hybrid", "offline"],
)
def test_command_knows_which_ranks_share_its_environment(monkeypatch, options, expected):
    if "environment" in options:
        options = {**options, "data_parallel_size": 1}
    assert Settings.load(create(monkeypatch, **options)).command == expected


@pytest.mark.parametrize(
    "method",
    [{"method": "ngram", "num_speculative_tokens": 2}, {"method": "ngram_gpu"}],
    ids=["ngram", "ngram_gpu"],
)
def test_drafts_without_a_model_are_accepted(monkeypatch, method):
    """Without a draft model vLLM gives the target's config, experts included, as the draft's."""
    config = create(monkeypatch, speculative_config={"num_speculative_tokens": 2, **method})
    assert config.speculative_config.draft_model_config.get_num_experts() == 16


HYBRID = {"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_start_rank": 2}


@pytest.mark.parametrize(
    ("process_name", "options", "expected"),
    [
        ("APIServer_DPRank_1", {"data_parallel_rank": 1}, range(2)),
        ("ApiServer_0", HYBRID, range(2, 4)),
    ],
    ids=["supervisor", "API server of a hybrid front-end"],
)
def test_only_servers_of_a_supervisor_share_its_environment(
    monkeypatch, process_name, options, expected
):
    monkeypatch.setattr(multiprocessing.current_process(), "_name", process_name)
    assert Settings.load(create(monkeypatch, **options)).command == expected


MTP = {"method": "mtp", "num_speculative_tokens": 1}


@pytest.mark.parametrize("fields", [MOE_MTP, DENSE_MTP], ids=["with experts", "dense"])
def test_multi_token_prediction_is_accepted(monkeypatch, tmp_path, fields):
    create(monkeypatch, model=demo_config_with(tmp_path, **fields), speculative_config=MTP)


@pytest.mark.parametrize("fields", [{}, DENSE], ids=["with experts", "dense"])
def test_draft_model_is_accepted(monkeypatch, tmp_path, fields):
    draft = demo_config_with(tmp_path, **fields)
    create(monkeypatch, speculative_config={"model": draft, "num_speculative_tokens": 2})


def test_allocator_that_keeps_loaded_weights_is_refused(monkeypatch):
    """CPUs have no such allocator, so the test makes vLLM believe that this one has it."""
    monkeypatch.setattr(current_platform, "is_cumem_allocator_available", lambda: True)
    with pytest.raises(Exception, match=r"drop --enable-cumem-allocator"):
        create(monkeypatch, enable_cumem_allocator=True)


def demo_config_with(tmp_path, **changes):
    """A directory with the demo model's tokenizer and changed config.json. None drops a key."""
    config = json.loads(Path(MODEL, "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    for file in Path(MODEL).glob("*token*"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (DENSE, "has no experts"),
        ({"quantization_config": {"quant_method": "humming"}}, "quantization method 'humming'"),
    ],
    ids=["dense", "humming"],
)
def test_model_that_cannot_be_shared_is_refused(monkeypatch, tmp_path, changes, word):
    with pytest.raises(Exception, match=word):
        create(monkeypatch, model=demo_config_with(tmp_path, **changes))


@pytest.mark.parametrize("kernel", ["humming", "b12x", "deep_gemm_mega_moe"])
def test_kernel_that_ranks_cannot_share_is_refused(monkeypatch, kernel):
    with pytest.raises(Exception, match=rf"run the kernel '{kernel}' on.*drop --moe-backend"):
        create(monkeypatch, moe_backend=kernel)


def test_scales_of_a_rank_alone_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_MARLIN_INPUT_DTYPE", "int8")
    create(monkeypatch)
    with pytest.raises(Exception, match=r"VLLM_MARLIN_INPUT_DTYPE=int8 .*unset it"):
        create(monkeypatch, model=demo_config_with(tmp_path, quantization_config=AWQ))


W4A8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 4, "type": "int"},
            "input_activations": {"num_bits": 8, "type": "float"},
        }
    },
}


FP8 = {"num_bits": 8, "type": "float"}
W4A8_AND_FP8 = W4A8["config_groups"] | {"group_1": {"weights": FP8, "input_activations": FP8}}
MXFP4_A8 = {"group_0": {"weights": {"num_bits": 4, "type": "float"}, "input_activations": FP8}}


@pytest.mark.parametrize(
    ("architecture", "quantization", "described", "sentence"),
    [
        ("DbrxForCausalLM", None, {}, "layers of DbrxForCausalLM, which loads experts in a way"),
        ("InklingForCausalLM", None, {}, "layers of InklingForCausalLM, which loads experts in"),
        ("GptOssForCausalLM", "quark", {}, "gpt-oss with quantization method 'quark', since vLLM"),
        ("GptOssForCausalLM", "nvfp4_per_token", {}, "transpose single experts as it quantises"),
        ("MixtralForCausalLM", "compressed-tensors", W4A8, "gave other outputs than stock vLLM"),
        ("MixtralForCausalLM", "compressed-tensors", W4A8 | {"ignore": ["re:.*experts.*"]}, None),
        ("MixtralForCausalLM", "compressed-tensors", {"config_groups": W4A8_AND_FP8}, None),
        ("MixtralForCausalLM", "compressed-tensors", {"config_groups": MXFP4_A8}, None),
        ("MixtralForCausalLM", "quark", {}, None),
        ("GptOssForCausalLM", None, {}, None),
        ("MixtralForCausalLM", "compressed-tensors", {"config_groups": {"a": {}}}, None),
    ],
)
def test_models_are_refused_by_class_and_format(architecture, quantization, described, sentence):
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            architectures=[architecture],
            quantization=quantization,
            model_impl="auto",
            hf_config=SimpleNamespace(quantization_config=described),
        ),
        kernel_config=SimpleNamespace(moe_backend="auto"),
    )
    checks = (format_checks.model_class, format_checks.expert_format)
    found = [said for check in checks if (said := check(config, DwdpConfig()))]
    assert len(found) == (sentence is not None)
    assert sentence is None or sentence in found[0]


def test_a_dbrx_is_refused_before_anything_starts(monkeypatch, tmp_path):
    model = demo_config_with(tmp_path, architectures=["DbrxForCausalLM"])
    with pytest.raises(Exception, match="MoE layers of DbrxForCausalLM"):
        create(monkeypatch, model=model)


def test_experts_in_host_memory_are_refused_for_formats_that_were_not_tried():
    config = SimpleNamespace(
        device_config=SimpleNamespace(device_type="cuda"),
        model_config=SimpleNamespace(quantization="auto_awq"),
        load_config=SimpleNamespace(load_format="auto"),
    )
    sentence = model_checks.host_experts(config, DwdpConfig(host_experts=2))
    assert sentence is not None and "got quantization method 'auto_awq'" in sentence
    config.model_config.quantization = "fp8"
    assert model_checks.host_experts(config, DwdpConfig(host_experts=2)) is None


def test_limits_say_why_each_load_format_of_vllm_is_refused():
    refused = set(get_args(LoadFormats)) - set(model_checks.LOAD_FORMATS)
    _, _, page = LIMITS.read_text().partition("### Load formats that are refused")
    named = set(re.findall(r"`(\w+)`", page.partition("\n## ")[0]))
    assert {"fastsafetensors", "runai_streamer", "sharded_state"} <= refused <= named


def test_refused_loaders_of_safetensors_cannot_skip_experts():
    """If vLLM tells them which experts to skip one day, they may be of use."""
    for iterator in (
        weight_utils.fastsafetensors_weights_iterator,
        weight_utils.runai_safetensors_weights_iterator,
    ):
        assert "local_expert_ids" not in inspect.signature(iterator).parameters
    read = inspect.signature(weight_utils.safetensors_weights_iterator).parameters
    assert "local_expert_ids" in read


@pytest.fixture
def allow_maps(monkeypatch):
    """Sets how many mappings the kernel has left for the views of experts."""

    def allow(number):
        limit = math.ceil(number / limits.MAP_SHARE)
        monkeypatch.setattr(limits, "_num_current_maps", lambda: 0)
        monkeypatch.setattr(limits, "read_max_map_count", lambda: limit)

    return allow


@pytest.mark.parametrize(
    ("method", "tensors_per_layer"), [(None, 2), ("auto_awq", 6), ("mxfp4", 4), ("fp8", 2)]
)
def test_a_job_is_refused_if_even_the_least_it_maps_is_too_much(
    monkeypatch, allow_maps, method, tensors_per_layer
):
    config = create(monkeypatch)
    config.model_config.quantization = method
    least = DEMO_LAYERS * tensors_per_layer * 2  # each tensor has a block of each rank
    allow_maps(least)
    assert model_checks.map_budget(config, DwdpConfig()) is None
    allow_maps(least - 1)
    sentence = model_checks.map_budget(config, DwdpConfig())
    assert sentence is not None and f"need {least} memory mappings" in sentence
    assert "sysctl -w vm.max_map_count=" in sentence


def test_more_mappings_than_the_kernel_allows_are_refused(monkeypatch, allow_maps):
    allow_maps(DEMO_LAYERS)
    with pytest.raises(Exception, match=r"sysctl -w vm\.max_map_count="):
        create(monkeypatch)


def test_unsupported_vllm_is_refused_with_the_range(monkeypatch):
    monkeypatch.setattr("vllm_dwdp.engine.compat.installed_version", lambda: "0.29.1")
    with pytest.raises(UnsupportedVllm, match=r"0\.30 to 0\.33, this is 0\.29\.1"):
        check_vllm_version()


def test_every_seam_exists_in_the_installed_vllm():
    assert missing(Path(vllm.__file__).parent) == []


def test_missing_seams_are_found_in_a_package_and_a_wheel(tmp_path):
    package = tmp_path / "vllm" / "entrypoints"
    package.mkdir(parents=True)
    (package / "llm.py").write_text("class LLM:\n    def enqueue(self): ...\n")
    wheel = tmp_path / "vllm.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(package / "llm.py", "vllm/entrypoints/llm.py")
    for source in (tmp_path / "vllm", wheel):
        lacking = {seam.name for seam in missing(source)}
        assert "LLM.enqueue" not in lacking
        assert {"LLM.enqueue_chat", "Executor.get_class"} < lacking


def test_vllm_works_beside_a_broken_plugin(tmp_path):
    """`vllm --version` works although `vllm_dwdp.engine` and `_core` can't be imported."""
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
