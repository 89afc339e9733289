# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The files in configs/ are what their programs accept: vLLM's parser, systemd, Kubernetes."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_dwdp.config import CONFIG_KEY, DwdpConfig
from vllm_dwdp.planning.hardware import read_hardware
from vllm_dwdp.planning.model_config import read_model
from vllm_dwdp.planning.plan import make_plan
from vllm_dwdp.planning.request import Request

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
UNITS = sorted(CONFIGS.glob("systemd/*"))
INSTALLED = "/etc/vllm-dwdp/"
"""Where docs/deployment.md has users copy the configuration."""


def parse(*options):
    """Parse options as vLLM's own command does. An option that vLLM doesn't know ends the test."""
    parser = make_arg_parser(FlexibleArgumentParser())
    return parser.parse_args(["--model", "MODEL", *options])


def is_valid(args):
    assert args.distributed_executor_backend == "dwdp"
    DwdpConfig.parse((args.additional_config or {}).get(CONFIG_KEY))
    return True


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_vllm_knows_all_options(path):
    args = parse("--config", str(path))
    assert is_valid(args)
    assert args.data_parallel_size > 1


def test_prefill_servers_produce_kv_caches_and_wait_for_full_steps():
    args = parse("--config", str(CONFIGS / "prefill_8_gpus.yaml"))
    assert args.data_parallel_size == args.data_parallel_size_local == 8
    assert args.kv_transfer_config.kv_role == "kv_producer"
    assert args.additional_config == {CONFIG_KEY: {"min_tokens_per_step": "auto"}}


def test_vllm_knows_the_options_that_plan_recommends():
    request = Request(read_model("deepseek-r1"), read_hardware("gb200"), dwdp_size=4, isl=8192)
    vllm, serve, model, *options = shlex.split(make_plan(request, "deepseek-r1").flags)
    assert (vllm, serve, model) == ("vllm", "serve", "deepseek-r1")
    args = parse(*options)
    assert is_valid(args)
    assert args.kv_transfer_config.kv_role == "kv_producer"


def commands(unit):
    text = unit.read_text().replace("%i", "3").replace("$$", "$")
    return re.findall(r"^ExecStart=(.*)$", text, re.M)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(unit, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in UNITS:
        text = path.read_text().replace("/opt/vllm/bin/vllm", str(program))
        (tmp_path / path.name.replace("@.", "@3.")).write_text(text)
        (tmp_path / path.name).write_text(text)
    copy = tmp_path / unit.name.replace("@.", "@3.")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True
    )
    ours = [line for line in done.stderr.splitlines() if "vllm-dwdp" in line]
    assert ours == []


def test_units_start_what_vllm_knows():
    found = [command for unit in UNITS for command in commands(unit)]
    assert len(found) == 2
    for command in found:
        words = shlex.split(shlex.split(command)[-1] if "-c" in command.split() else command)
        options = words[words.index("serve") + 2 :]
        options = [word.replace(INSTALLED, f"{CONFIGS}/") for word in options]
        options = ["8103" if word.startswith("$((") else word for word in options]
        options = [word for word in options if word not in ("+", "3))")]
        assert is_valid(parse(*options))


def test_kubernetes_pod_starts_what_vllm_knows_and_has_all_gpus():
    (pod,) = (
        manifest["spec"]["template"]["spec"]
        for manifest in yaml.safe_load_all((CONFIGS / "kubernetes" / "prefill.yaml").read_text())
    )
    (container,) = pod["containers"]
    assert container["command"] == ["vllm", "serve"] and not pod["enableServiceLinks"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"/config", "/dev/shm"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        v["name"] for v in pod["volumes"]
    }
    args = parse(*(word.replace("/config", str(CONFIGS)) for word in container["args"][1:]))
    assert is_valid(args)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == args.data_parallel_size
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"rank-0": args.port, "supervisor": args.data_parallel_supervisor_port}
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
