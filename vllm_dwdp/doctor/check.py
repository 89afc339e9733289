# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A check: one thing that is looked at, and all the ways in which it can end."""

from collections.abc import Callable
from dataclasses import dataclass

from vllm_dwdp.doctor.finding import Case, Finding
from vllm_dwdp.doctor.host import Host

Run = Callable[[Host], Finding]


@dataclass(frozen=True)
class Check:
    """One line of the report.

    name: unique and stable, for scripts. looks_at: what the check looks at, for the docs. run: may
    raise, which makes a line that fails. cases: every way to end other than with OK. needs: checks
    that must have ended with OK or WARN; otherwise this one isn't run.
    """

    name: str
    title: str
    looks_at: str
    run: Run
    cases: tuple[Case, ...] = ()
    needs: tuple["Check", ...] = ()


@dataclass(frozen=True)
class Group:
    """Checks under one heading."""

    title: str
    checks: tuple[Check, ...]


def check(
    title: str, looks_at: str, *cases: Case, needs: tuple[Check, ...] = ()
) -> Callable[[Run], Check]:
    """Make a check of a function, with the function's name."""

    def make(run: Run) -> Check:
        return Check(run.__name__, title, looks_at, run, cases, needs)

    return make
