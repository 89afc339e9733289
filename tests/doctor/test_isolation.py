# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A check that raises, hangs or crashes makes one line that fails, and the others go on."""

import socket
import time

import psutil
import pytest
from support.doctor import look

from vllm_dwdp.doctor.check import check
from vllm_dwdp.doctor.child import ask
from vllm_dwdp.doctor.finding import Case, Finding, Status, ok
from vllm_dwdp.doctor.groups import GROUPS, gpu_links, gpu_memory, gpus, installation
from vllm_dwdp.doctor.host import Host, Options
from vllm_dwdp.doctor.redaction import Redaction

FAIL, NOT_HERE = Status.FAIL, Status.NOT_HERE
SOON = Host(Options(time_limit_s=2.0))
IMPERATIVES = (
    *("Add", "Bring", "Choose", "Correct", "Enlarge", "Expect", "First", "For", "Free", "Give"),
    *("Install", "Leave", "Let", "Make", "Mount", "On", "Put", "Raise", "Remove", "Run", "See"),
    *("Set", "Start", "Switch", "Take", "To", "Unset", "Update", "Use"),
)
"""With which words a remedy may begin; each leads to something to do."""


@check("raises", "an error")
def raises(host):
    raise ValueError("a reason")


@check("goes on", "nothing")
def goes_on(host):
    return ok("well")


@check("needs", "what came before", needs=(raises,))
def needs(host):
    raise AssertionError("isn't run")


@check("needs more", "what came before", needs=(needs,))
def needs_more(host):
    raise AssertionError("isn't run")


def test_a_check_that_raises_is_a_line_with_its_text():
    raised, well = look(raises, goes_on)
    assert (raised.status, raised.text) == (FAIL, "ValueError: a reason")
    assert "report it as a bug" in raised.remedy
    assert well.text == "well"


def test_checks_that_need_one_that_failed_name_the_first():
    _, second, third = look(raises, needs, needs_more)
    for skipped in (second, third):
        assert skipped.status is NOT_HERE
        assert skipped.text == "not looked at, because of 'raises'"
        assert skipped.remedy == "First see to 'raises'."


def test_a_program_that_hangs_is_ended_with_all_that_it_started(program):
    program("nvidia-smi", "sleep 1234.5 & wait")
    start = time.monotonic()
    nvlink, mig, well = look(gpu_links.nvlink, gpu_links.mig, goes_on, host=SOON)
    assert time.monotonic() - start < 60
    for hung in (nvlink, mig):
        assert hung.status is FAIL and hung.text == "no answer within 2 s"
        assert "--time-limit 10" in hung.remedy
    assert well.text == "well"
    deadline = time.monotonic() + 30
    while ["sleep", "1234.5"] in running_commands():
        assert time.monotonic() < deadline, "what the program started is still there"


def running_commands():
    return [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]


def test_a_driver_that_hangs_costs_its_own_line(gpu_library):
    gpu_library("delay(b'cuInit', 100000)")
    driver, found, memory = look(
        gpus.cuda_driver, gpus.gpus, gpu_memory.virtual_memory, host=Host(Options(time_limit_s=2.0))
    )
    assert driver.status is FAIL and driver.text == "no answer within 2 s"
    assert found.status is memory.status is NOT_HERE


def test_a_probe_that_crashes_is_named_with_its_signal(on_start):
    on_start("import os, sys\nif 'pytorch' in sys.orig_argv: os.kill(os.getpid(), 11)\n")
    crashed, well = look(installation.pytorch, goes_on)
    assert crashed.status is FAIL and crashed.text == "killed by SIGSEGV"
    assert well.text == "well"


def test_what_libraries_print_is_no_part_of_an_answer(on_start):
    on_start("print('a banner', flush=True)\nimport atexit\natexit.register(print, 'farewell')\n")
    assert ask("network", limit_s=60)["loopback_error"] is None


def test_a_probe_runs_once_for_all_checks(monkeypatch):
    asked = []
    monkeypatch.setattr("vllm_dwdp.doctor.host.ask", lambda probe, **_: asked.append(probe))
    host = Host()
    assert host.ask("core") is host.ask("core") is None
    assert asked == ["core"]


class TestRedaction:
    @pytest.fixture(autouse=True)
    def named(self, monkeypatch):
        monkeypatch.setattr(socket, "gethostname", lambda: "vm")

    @pytest.mark.parametrize(
        ("text", "cleaned"),
        [
            ("(host vm) at vm: vm.", "(host <this host>) at <this host>: <this host>."),
            ("vm.max_map_count, kvm-clock, vm-1", "vm.max_map_count, kvm-clock, vm-1"),
            ("/home/jo/.cache, /home/john", "~/.cache, /home/john"),
            ("got 'sk-123456'", "got '<value of VLLM_API_KEY>'"),
            ("/home/jo/secret", "~/secret"),
        ],
    )
    def test_takes_out_host_home_and_secrets_alone(self, text, cleaned):
        environment = {
            "HOME": "/home/jo",
            "VLLM_API_KEY": "sk-123456",
            "VLLM_DWDP_SECRET_FILE": "/home/jo/secret",
            "MY_TOKEN": "",
        }
        assert Redaction(environment).clean(text) == cleaned


def all_checks():
    return [one for group in GROUPS for one in group.checks]


def test_names_of_checks_are_unique_and_needs_come_before():
    names = [one.name for one in all_checks()]
    assert len(set(names)) == len(names)
    for at, one in enumerate(all_checks()):
        assert {needed.name for needed in one.needs} <= set(names[:at]), one.name


@pytest.mark.parametrize("one", all_checks(), ids=lambda one: one.name)
def test_every_remedy_says_what_to_do(one):
    for case in one.cases:
        assert case.remedy.split()[0] in IMPERATIVES, case.remedy
        assert case.remedy.endswith("."), case.remedy
        assert not case.when.endswith("."), case.when


@pytest.mark.parametrize(("status", "remedy"), [(Status.OK, "Do."), (FAIL, ""), (NOT_HERE, "")])
def test_a_finding_has_a_remedy_unless_all_is_well(status, remedy):
    with pytest.raises(ValueError, match="can't go together"):
        Finding(status, "text", remedy)


def test_values_are_put_into_remedies():
    case = Case(Status.WARN, "when", "Set it to {number}.")
    assert case.found("text", number=5).remedy == "Set it to 5."
