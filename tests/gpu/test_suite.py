# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The GPU suite keeps its time limits, writes results in time, and tells errors from misses."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from figures import say
from parts import ERROR, NOT_RUN, RAN, Need, part
from report import Outcome, Status
from suite import CHECKS, exit_status, known_check, run_checks

GPU_TESTS = Path(__file__).parent
FINE = "say('read', bytes=7)"
RAISES = "raise ValueError('a wrong byte')"
MISSES = "say('copy', gb_per_s=3.0, expected={'gb_per_s': (10, None)})"
HANGS = "import time; time.sleep(60)"


@pytest.fixture
def make_checks(tmp_path, monkeypatch):
    """Writes scripts of checks with one part each. Arguments: by check, the body of its part."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(GPU_TESTS), str(GPU_TESTS.parent)]))

    def make(**bodies):
        for name, body in bodies.items():
            (tmp_path / f"check_{name}.py").write_text(
                f"""
import parts
from figures import say

class Device:
    offers = violations = ()

@parts.part("{name}'s part")
def only(device):
    {body}

parts.make_device = Device
parts.run_parts(only)
"""
            )
        return tmp_path

    return make


@pytest.fixture
def run(make_checks, tmp_path):
    """Runs such checks; returns their outcomes by name, and the text of the results."""

    def run_all(seconds=60.0, **bodies):
        folder = make_checks(**bodies)
        path = tmp_path / "results.md"
        with path.open("w") as results:
            outcomes = list(run_checks(bodies, results, seconds=seconds, folder=folder))
        return {outcome.check: outcome for outcome in outcomes}, path.read_text()

    return run_all


def test_error_is_reported_with_its_part_and_later_checks_run(run):
    outcomes, results = run(broken=RAISES, fine=FINE)
    assert outcomes["broken"].status is Status.ERROR
    assert outcomes["fine"].status is Status.PASSED
    assert "Error in broken's part" in results and "ValueError: a wrong byte" in results
    assert "| bytes | 7 |" in results


def test_missed_figure_is_reported_apart_from_errors(run):
    outcomes, results = run(slow=MISSES)
    assert outcomes["slow"].status is Status.MISSED
    assert outcomes["slow"].errors == []
    assert "Outside of its range: copy: gb_per_s." in results
    assert "| gb_per_s | 3.0 | at least 10 |" in results


def test_check_that_hangs_is_ended_at_its_limit_and_keeps_its_figures(run, monkeypatch):
    monkeypatch.setattr("suite.LIMIT_S", 3.0)
    start = time.monotonic()
    outcomes, results = run(hangs=f"{FINE}; {HANGS}", fine=FINE)
    assert time.monotonic() - start < 30
    assert outcomes["hangs"].status is Status.ERROR
    assert outcomes["fine"].status is Status.PASSED
    assert "no end within 3 s" in results
    assert results.count("| bytes | 7 |") == 2


def test_check_that_is_killed_is_an_error(run):
    outcomes, _ = run(killed="import os; os.kill(os.getpid(), 11)")
    assert outcomes["killed"].status is Status.ERROR
    assert "exit status -11" in outcomes["killed"].why


def test_checks_without_time_left_are_not_run(run):
    outcomes, results = run(seconds=1.0, late=FINE)
    assert outcomes["late"].status is Status.NOT_RUN
    assert "## late: not run" in results


def test_what_a_check_said_is_written_before_the_next_one_starts(make_checks, tmp_path):
    folder = make_checks(first=FINE, second=HANGS)
    path = tmp_path / "results.md"
    with path.open("w") as results:
        outcomes = run_checks(("first", "second"), results, seconds=60, folder=folder)
        next(outcomes)
        assert "| bytes | 7 |" in path.read_text()
        outcomes.close()


class TestPart:
    class Device:
        offers = (Need.TORCH,)
        violations = ()

    def attempt(self, one, capsys):
        """Attempt a part; returns the line that it reports."""
        outcome = one.attempt(self.Device())
        line = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert line["outcome"] == outcome
        return line

    def test_runs_where_its_needs_are_met(self, capsys):
        line = self.attempt(part("reads", Need.TORCH)(lambda device: None), capsys)
        assert line["outcome"] == RAN

    def test_is_not_run_where_a_need_is_missing(self, capsys):
        def fails(device):
            raise AssertionError("this device has no graphs")

        line = self.attempt(part("replays", Need.TORCH, Need.GRAPHS)(fails), capsys)
        assert (line["outcome"], line["why"]) == (NOT_RUN, "needs CUDA graphs")

    def test_finding_of_the_fake_driver_is_an_error(self, capsys):
        def races(device):
            device.violations = ("no event orders a read after a copy",)

        line = self.attempt(part("races")(races), capsys)
        assert line["outcome"] == ERROR and "no event orders" in line["why"]


def outcome_of(*parts, **options):
    lines = [{"part": name, "outcome": ended, "seconds": 0, "why": "w"} for name, ended in parts]
    return Outcome("check", lines, **options)


def test_what_has_not_run_never_counts_as_passed():
    assert outcome_of(("a", NOT_RUN)).status is Status.NOT_RUN
    assert outcome_of().status is Status.NOT_RUN
    assert outcome_of(("a", RAN), ("b", NOT_RUN)).status is Status.PASSED
    rows = outcome_of(("a", RAN), ("b", NOT_RUN)).summary_rows()
    assert [(row[0], row[1]) for row in rows] == [("check: a", "ran"), ("check: b", "not run")]


def test_exit_status_tells_errors_misses_and_what_has_not_run_apart():
    ran, not_run = outcome_of(("a", RAN)), outcome_of(("a", NOT_RUN))
    missed = outcome_of(("a", RAN))
    missed.lines.append({"figures": {}, "title": "copy", "misses": ["gb_per_s"]})
    left_out, error = outcome_of(is_left_out=True), outcome_of(("a", ERROR))
    assert exit_status([ran, not_run]) == 0
    assert exit_status([not_run]) == exit_status([ran, left_out]) == 3
    assert exit_status([ran, missed, left_out]) == 2
    assert exit_status([missed, error, left_out]) == 1


def test_rehearsal_never_counts_as_passed(capsys):
    assert outcome_of(("a", RAN), is_rehearsal=True).status is Status.REHEARSED
    assert outcome_of(("a", ERROR), is_rehearsal=True).status is Status.ERROR


@pytest.mark.parametrize(
    ("value", "bounds", "misses"),
    [
        (5, (None, 5), []),
        (6, (None, 5), ["x"]),
        (1, (2, None), ["x"]),
        (2, (2, 3), []),
        (float("nan"), (2, 3), ["x"]),
    ],
)
def test_figures_are_judged_by_ranges(value, bounds, misses, capsys):
    say("title", x=value, expected={"x": bounds})
    assert json.loads(capsys.readouterr().out)["misses"] == misses


def test_every_check_has_a_script_and_every_script_a_place():
    scripts = {path.stem.removeprefix("check_") for path in GPU_TESTS.glob("checks/check_*.py")}
    assert scripts == {*CHECKS, "sanitizer"}
    with pytest.raises(Exception, match=r"expected one of sharing, .*, got 'speed'"):
        known_check("speed")


def test_machine_without_a_gpu_is_skipped_not_passed(tmp_path):
    ran = subprocess.run(
        ["bash", str(GPU_TESTS / "run.sh"), str(tmp_path / "results.md")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable},
    )
    assert ran.returncode == 0 and ran.stdout.startswith("skipped: no GPU")
    assert not (tmp_path / "results.md").exists()
