# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs all checks, each on its own: one that raises or hangs makes one line that fails."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_dwdp.doctor.check import Check, Group
from vllm_dwdp.doctor.child import ProbeTimeout
from vllm_dwdp.doctor.finding import Case, Finding, Status
from vllm_dwdp.doctor.host import Host
from vllm_dwdp.doctor.redaction import Redaction

RAISED = Case(
    Status.FAIL,
    "the check itself raises an error, or its process crashes",
    "Remove the cause if the text names one; otherwise report it as a bug, with this whole output.",
)
HUNG = Case(
    Status.FAIL,
    "the check's process gives no answer in time",
    "On a slow machine repeat it with --time-limit {longer}; if that hangs too, look for errors of "
    "a driver or a file system in the kernel's log (dmesg).",
)
NOT_LOOKED_AT = Case(
    Status.NOT_HERE,
    "a check that this one needs didn't end well",
    "First see to '{needed}'.",
)
CASES_OF_ALL = (RAISED, HUNG, NOT_LOOKED_AT)
LONGER = 5


@dataclass(frozen=True)
class Line:
    """One line of the report."""

    group: str
    name: str
    title: str
    finding: Finding


def examine(groups: Sequence[Group], host: Host) -> Iterator[Line]:
    """The line of each check, in order, as soon as it is known. Never raises.

    A check isn't run if one that it needs, or that this one needs in turn, didn't end well: its
    line names the first of them.
    """
    redaction = Redaction()
    culprits: dict[str, str] = {}
    for group in groups:
        for one in group.checks:
            culprit = next((culprits[n.name] for n in one.needs if n.name in culprits), None)
            finding = _skip(culprit) if culprit else _run(one, host)
            if finding.status not in (Status.OK, Status.WARN):
                culprits[one.name] = culprit or one.title
            yield Line(group.title, one.name, one.title, _clean(finding, redaction))


def _clean(finding: Finding, redaction: Redaction) -> Finding:
    text, remedy = map(redaction.clean, (finding.text, finding.remedy))
    return Finding(finding.status, text, remedy)


def _skip(culprit: str) -> Finding:
    return NOT_LOOKED_AT.found(f"not looked at, because of '{culprit}'", needed=culprit)


def _run(one: Check, host: Host) -> Finding:
    try:
        return one.run(host)
    except ProbeTimeout as error:
        return HUNG.found(str(error), longer=f"{LONGER * host.options.time_limit_s:g}")
    except Exception as error:
        return RAISED.found(f"{type(error).__name__}: {error}")
