# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The page of a trace opens in a browser without a network, and shows all of the trace."""

import re
import shutil
import subprocess

import pytest
from support.host_layers import HostLayers

from vllm_dwdp.trace.page import page_of
from vllm_dwdp.trace.tables import tables_of
from vllm_dwdp.trace.trace_file import Trace

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NAME = "<script>alert('x')</script> & \"co\""


@pytest.fixture(scope="module")
def trace():
    recordings = []
    for rank in range(2):
        layers = HostLayers(kernel_s=1e-3)
        recordings.append(layers.as_of_rank(layers.recorded(3), rank) | {"model": NAME})
    return Trace.of(recordings)


@pytest.fixture(scope="module")
def page(trace, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page_of(trace))
    return path


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Opens a page in a headless browser, and returns the page as it is once its script has run."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser ({', '.join(BROWSERS)})")
    profile = tmp_path_factory.mktemp("profile")

    def open_page(path):
        command = [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
        ]
        command += [f"--user-data-dir={profile}", "--window-size=1400,900"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000"]
        shown = subprocess.run(
            [*command, "--dump-dom", f"file://{path}"], capture_output=True, text=True, timeout=300
        )
        messages = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
        return shown.stdout, messages

    return open_page


def test_page_names_nothing_outside_of_itself(page):
    text = page.read_text()
    assert not re.search(r"https?:|//[a-z]|\bsrc=|\bhref=|@import|url\(|fetch\(|XMLHttp", text)


def test_text_of_others_is_shown_and_not_run(page):
    text = page.read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_tables_have_all_ranks_and_the_worst_layers(trace, page):
    text = page.read_text()
    for table in tables_of(trace):
        assert f"<h2>{table.title}</h2>" in text
        for row in table.rows:
            assert "".join(f"<td>{cell}</td>" for cell in row) in text


def test_browser_draws_every_span_and_reports_no_error(trace, page, browse):
    dom, messages = browse(page)
    assert messages == []
    (drawn,) = re.findall(r'data-drawn="(\d+)"', dom)
    assert int(drawn) == len(trace.spans)


def test_browser_draws_a_trace_without_spans(browse, tmp_path):
    layers = HostLayers()
    layers.tracing.start(1)
    path = tmp_path / "empty.html"
    path.write_text(page_of(Trace.of([layers.as_of_rank(layers.tracing.take())])))
    dom, messages = browse(path)
    assert messages == []
    assert 'data-drawn="0"' in dom
