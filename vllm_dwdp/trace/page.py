# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A page that shows a trace: a timeline, totals and the worst layers, in one file without links."""

import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from vllm_dwdp.trace.tables import Table, notes_on, tables_of
from vllm_dwdp.trace.trace_file import Trace

TEMPLATE = Path(__file__).with_name("page.html")


def page_of(trace: Trace) -> str:
    """The page as HTML."""
    return Template(TEMPLATE.read_text()).substitute(
        title=escape(f"DWDP trace of {_model(trace)}"),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes_on(trace)),
        tables="".join(map(_table, tables_of(trace))),
        data=_script_safe(_timeline(trace)),
    )


def _model(trace: Trace) -> str:
    """The model's name; of a folder of this host, its last part."""
    models = [str(about["model"]) for about in trace.about_ranks]
    name = models[0] if models else "no model"
    return Path(name).name if name.startswith("/") else name


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    empty = "" if table.rows else "<p>None.</p>"
    return f"<h2>{escape(table.title)}</h2><table><tr>{head}</tr>{body}</table>{empty}"


def _timeline(trace: Trace) -> list[dict[str, Any]]:
    """The threads of all ranks in order; a span is [begin, duration, kind, name, arguments]."""
    names = {_thread(e): e["args"] for e in trace.events if e["name"] == "thread_name"}
    order = {_thread(e): e["args"] for e in trace.events if e["name"] == "thread_sort_index"}
    threads: dict[tuple[int, int], list[Any]] = {thread: [] for thread in names}
    for event in trace.events:
        if event["ph"] == "X":
            shown = [event[key] for key in ("ts", "dur", "cat", "name", "args")]
            threads[_thread(event)].append(shown)
    in_order = sorted(threads, key=lambda one: (one[0], order[one]["sort_index"]))
    return [{"rank": t[0], "name": names[t]["name"], "spans": threads[t]} for t in in_order]


def _thread(event: dict[str, Any]) -> tuple[int, int]:
    return event["pid"], event["tid"]


def _script_safe(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
