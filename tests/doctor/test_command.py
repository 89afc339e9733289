# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp doctor` as users run it."""

import importlib.util
import json
import os
import pty
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from support.doctor import checks_by_name, run_doctor

from vllm_dwdp.doctor.groups import GROUPS

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "doctor.schema.json").read_text())
ALL = {one.name: one for group in GROUPS for one in group.checks}
WITHOUT_PLUGIN = {**os.environ, "VLLM_PLUGINS": "another"}
"""With these variables the report fails, and is quick: vLLM isn't imported."""


def test_report_of_this_host_as_text():
    done = run_doctor(env={**os.environ, "VLLM_API_KEY": "sk-very-private", "FORCE_COLOR": "1"})
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    assert "\x1b" not in done.stdout, "no colours where no terminal is"
    assert "sk-very-private" not in done.stdout
    assert not re.search(rf"(?<![\w.-]){re.escape(socket.gethostname())}(?![\w.-])", done.stdout)
    head = done.stdout.splitlines()[1]
    for name in ("vllm-dwdp 0.", "vllm 0.", "torch 2.", "python 3.", "kernel Linux", "os "):
        assert name in head
    rows = re.findall(r"^  (ok|warn|fail|not here) +(\S.*?)  ", done.stdout, re.M)
    assert {title for _, title in rows} == {one.title for one in ALL.values()}
    assert " 0 fail," in done.stdout.splitlines()[-1]


def test_report_of_this_host_as_json():
    done = run_doctor("--json", "--dwdp-size", "1")
    jsonschema.validate(report := json.loads(done.stdout), SCHEMA)
    assert done.returncode == 0 and report["dwdp_size"] == 1
    found = checks_by_name(done)
    assert list(found) == list(ALL)
    assert sum(report["counts"].values()) == len(found)
    assert found["vllm_names"]["status"] == found["shared_page"]["status"] == "ok"


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has a driver")
def test_lines_of_gpus_are_not_here_on_a_machine_without_one():
    found = checks_by_name(run_doctor("--json", env=WITHOUT_PLUGIN))
    of_gpus = [name for group in GROUPS if "GPU" in group.title for name in map_names(group)]
    assert len(of_gpus) > 10
    assert {found[name]["status"] for name in of_gpus} == {"not here"}


def map_names(group):
    return [one.name for one in group.checks]


def test_gpus_of_the_fake_driver_are_in_the_report(gpu_library):
    gpu_library("deny_peer_access(0, 1)")
    done = run_doctor("--json", env={**os.environ, "VLLM_PLUGINS": "another"})
    found = checks_by_name(done)
    assert found["cuda_driver"]["text"].startswith("for CUDA 13.0")
    assert found["virtual_memory"]["status"] == found["descriptor_handles"]["status"] == "ok"
    assert found["peer_access"]["status"] == found["peer_pages"]["status"] == "fail"
    assert "1->0" in found["peer_pages"]["text"]
    assert found["pytorch_cuda"]["status"] in ("ok", "warn")


def test_a_variable_without_dwdp_fails_and_ends_with_1():
    done = run_doctor(env=WITHOUT_PLUGIN)
    assert done.returncode == 1
    assert re.search(r"fail +VLLM_PLUGINS +'another' doesn't name dwdp", done.stdout)
    assert "> Add dwdp to VLLM_PLUGINS" in done.stdout
    assert re.search(r"not here +plugin in vLLM +not looked at, because of 'VLLM_PLUG", done.stdout)


def test_letters_that_the_output_does_not_have_are_written_as_numbers():
    done = run_doctor(env={**os.environ, "VLLM_PLUGINS": "\u00fc", "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1 and done.stderr == ""
    assert "'\\xfc' doesn't name dwdp" in done.stdout


def test_several_conditions_at_once_each_make_their_line(tmp_path, on_start):
    """An unsupported vLLM, no core, few descriptors, and a home that is a file."""
    on_start("import sys\nsys.modules['vllm_dwdp._core'] = None\n")
    folder = tmp_path / "on_start" / "vllm-0.29.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.29.1\n")
    (tmp_path / "file").touch()
    done = run_doctor(
        "--json",
        env={**os.environ, "HOME": str(tmp_path / "file")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300)),
    )
    found = checks_by_name(done)
    assert done.returncode == 1
    failed = {name for name, line in found.items() if line["status"] == "fail"}
    assert failed == {"vllm", "core", "open_files"}
    assert json.loads(done.stdout)["versions"]["vllm"] == "0.29.1"
    assert found["loopback"]["status"] == "ok", "the rest goes on"


def test_a_home_that_cannot_be_used_is_one_warning(tmp_path):
    (tmp_path / "file").touch()
    done = run_doctor("--json", env={**os.environ, "HOME": str(tmp_path / "file" / "home")})
    found = checks_by_name(done)
    assert found["cache"]["status"] == "warn", found["cache"]
    assert "~/.cache/vllm" in found["cache"]["text"]
    assert found["shared_page"]["status"] == "ok"


def test_a_terminal_gets_colours():
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "vllm_dwdp.cli", "doctor"]
    environment = {**WITHOUT_PLUGIN, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdout=child, env=environment)
    os.close(child)
    shown = b""
    while part := read_from_terminal(parent):
        shown += part
    assert process.wait(timeout=60) == 1
    assert b"\x1b[1;31m  fail" in shown and b"\x1b[32m  ok" in shown


def read_from_terminal(descriptor):
    """Some bytes; none once the terminal's other end is closed, which Linux reports as an error."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


@pytest.mark.parametrize("options", [["--dwdp-size", "0"], ["--dwdp-size", "x"], ["--no-such"]])
def test_bad_options_end_with_2(options):
    done = run_doctor(*options)
    assert done.returncode == 2 and done.stdout == ""


def test_the_page_lists_every_check_as_it_is():
    path = DOCS / "doctor_table.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "doctor.md").read_text()
    assert module.with_table(page) == page, f"run python {path.name}"


def test_the_example_of_the_page_has_the_titles_of_today():
    example = (
        (DOCS / "doctor.md").read_text().partition("vllm-dwdp doctor\n")[2].partition("```")[0]
    )
    rows = re.findall(r"^  (?:ok|warn|fail|not here) +(\S.*?)  ", example, re.M)
    assert rows == [one.title for one in ALL.values()]
