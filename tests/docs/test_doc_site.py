# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The documentation site: it builds without warnings, loads nothing from other hosts, is whole."""

import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))
import build_site  # noqa: E402
from foreign import foreign_in_page  # noqa: E402

COMPARED = frozenset(
    ["p", "li", "ul", "ol", "pre", "table", "td", "th", "h1", "h2", "h3", "em", "strong", "a"]
)


@pytest.fixture
def no_repository(tmp_path):
    """A repository with one page, without links."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("# Page\n")
    return tmp_path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, ROOT / "docs" / "site" / "build_site.py", "--out", out]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return out


def test_the_site_has_a_page_for_every_page_and_for_linked_code(site):
    built = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    pages = {str(path.relative_to(ROOT).with_suffix(".html")) for path in ROOT.glob("docs/*.md")}
    assert pages <= built
    assert {"index.html", "vllm_dwdp/fetch/scheduler.py.html"} <= built
    assert "configs/kubernetes/prefill.yaml.html" in built


def test_pages_show_their_figures(site):
    for name in ("dwdp.svg", "owners.svg", "timeline.svg"):
        assert (site / "docs" / name).read_bytes() == (ROOT / "docs" / name).read_bytes()


def test_links_to_code_lead_to_its_page(site):
    assert (
        'href="../vllm_dwdp/fetch/scheduler.py.html"' in (site / "docs/scheduler.html").read_text()
    )


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def handle_starttag(self, tag, attrs):
        self.seen[tag] += tag in COMPARED


def tags(html):
    parser = _Tags()
    parser.feed(html)
    return +parser.seen


@pytest.mark.parametrize(
    "page", list(build_site.first_pages(ROOT)), ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_site_reads_a_page_as_a_code_host_does(page):
    """Lists without a blank line before them, for example, are lists to one of the two only."""
    text = page.read_text()
    of_site = markdown.markdown(text, extensions=["tables", "sane_lists", "pymdownx.superfences"])
    assert tags(of_site) == tags(MarkdownIt("commonmark").enable("table").render(text))


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example.com/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example.com/css">',
        '<img src="https://example.com/a.png">',
        "<style>@import 'https://example.com/a.css';</style>",
        '<p style="background: url(https://example.com/a.png)">',
    ],
)
def test_what_a_page_loads_from_another_host_is_found(html):
    assert len(foreign_in_page(html)) == 1


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://example.com">followed by readers only</a>',
        '<link rel="canonical" href="https://example.com">',
        '<script src="../assets/a.js"></script>',
        "<code>url(https://example.com/a.js)</code>",
    ],
)
def test_what_a_page_does_not_load_is_no_finding(html):
    assert foreign_in_page(html) == []


@pytest.mark.parametrize("link", ["missing.py", "../docs", "../../outside.md"])
def test_a_link_to_no_file_of_the_repository_is_refused(no_repository, link):
    (no_repository / "docs" / "page.md").write_text(f"# Page\n\n[there]({link})\n")
    with pytest.raises(build_site.BrokenDocs, match=r"docs/page.md: expected links to files"):
        build_site.stage(no_repository, no_repository / "pages")
